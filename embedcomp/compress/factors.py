"""Filling the two factors of a low-rank layer from a basis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedcomp.compress.algebra import CHUNK_ROWS, Basis, chunks, solve
from embedcomp.compress.contract import Layer
from embedcomp.served.linear import LowRankLinear
from embedcomp.served.table import CompressedTable


def fill_table(
    served: nn.Module, layer: Layer, basis: Basis, rank: int, mean: Tensor | None, *, refit: bool
) -> None:
    """Codes of every row and the decoder.

    Args:
        mean: [dim], what the code 0 decodes to; None for a linear decoder.
        refit: fit the decoder again to the codes as stored, by least squares weighted by counts.
    """
    assert isinstance(served, CompressedTable) and served.decode is not None
    encoder, decoder, bias = basis.encoder[:, :rank], basis.decoder[:rank], mean
    served.fill(_codes(layer.weight, encoder, mean), layer.counts, basis.weights[:rank])
    if refit and rank:
        decoder, bias = fit_affine(served.stored.to_float(), layer.weight, layer.counts)
    served.decode.fill(decoder, bias)


def _codes(rows: Tensor, encoder: Tensor, mean: Tensor | None) -> Tensor:
    """Codes float32 [n, k] of rows [n, d]."""
    encoder = encoder.float()
    codes = torch.empty(len(rows), encoder.shape[1])
    for start in range(0, len(rows), CHUNK_ROWS):
        part = rows[start : start + CHUNK_ROWS]
        centred = part if mean is None else part - mean.float()
        torch.mm(centred, encoder, out=codes[start : start + CHUNK_ROWS])
    return codes


def fit_affine(x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The map x @ weight + bias closest to y: weight [k, d] and bias [d], float64.

    Args:
        x, y: float32 [n, k] and [n, d].
        weights: [n], of the squared errors; None: all the same.
    """
    k = x.shape[1]
    both = torch.zeros(k + y.shape[1] + 1, k + 1, dtype=torch.float64)
    for start, (values, w) in zip(range(0, len(x), CHUNK_ROWS), chunks(x, weights), strict=True):
        ones = values.new_ones(len(values), 1)
        left = torch.cat([values, ones], 1)  # [n, k + 1]
        right = torch.cat([values, ones, y[start : start + CHUNK_ROWS].double()], 1)
        both.addmm_((right if w is None else right * w[:, None]).T, left)
    both /= both[k, k].clone()  # the sum of the weights
    x_mean, y_mean = both[:k, k], both[k + 1 :, k]
    covariance = both[:k, :k] - x_mean.outer(x_mean)
    weight = solve(covariance, both[k + 1 :, :k].T - x_mean.outer(y_mean))
    return weight, y_mean - x_mean @ weight


def fill_linear(served: nn.Module, layer: Layer, basis: Basis, rank: int, *, refit: bool) -> None:
    """Both factors; the bias is the layer's.

    Args:
        basis: of the output, [outputs, outputs].
        refit: fit the second factor again to the first as stored, by least squares over the log.
    """
    assert isinstance(served, LowRankLinear)
    weight, covariance = layer.weight.double(), layer.inputs.covariance
    first = weight.T @ basis.encoder[:, :rank]  # [inputs, rank]
    second = basis.decoder[:rank].T  # [outputs, rank]
    served.first.fill(first, covariance.diagonal(), basis.weights[:rank])
    stored = served.first.to_float().double()
    moved = covariance @ stored  # [inputs, rank]
    if refit:
        second = solve(stored.T @ moved, moved.T @ weight.T).T
    spread = (stored * moved).sum(0)  # of each code
    served.second.fill(second, layer.output_weights, spread)
    if layer.bias is not None:
        served.set_bias(layer.bias)


def centre_linear(served: nn.Module, layer: Layer, encoder: Tensor) -> None:
    """Biases that keep the mean of the output.

    Args:
        encoder: [outputs, rank], of the output. The codes of the layer's own bias go where the
            activation between the factors can see them.
    """
    assert isinstance(served, LowRankLinear)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    served.set_bias(torch.zeros(len(layer.weight)))
    if served.middle is not None:
        served.middle = nn.Parameter((bias.double() @ encoder).float())
    product, own = served.to_float()
    assert own is not None
    lost = (layer.weight - product).double() @ layer.inputs.mean
    served.set_bias(bias + lost - own)
