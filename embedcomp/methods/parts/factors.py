"""Filling the two factors of a low-rank layer from a basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedcomp.modules.linear import LowRankLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.algebra import (
    CHUNK_ROWS,
    Basis,
    Roots,
    basis,
    chunks,
    moments,
    roots,
    solve,
)
from embedcomp.sensitivity.layer import Layer, TableSpec
from embedcomp.storage.columns import Columns
from embedcomp.storage.decode import Affine

Weighting = Literal["loss", "output"]  # of errors: by measured gradients, or all the same


def output_basis(layer: Layer, weighting: Weighting) -> Basis:
    """The directions of a layer's output, the most valuable first (AFM, arXiv 2405.18146).

    Args:
        weighting: "loss" weighs errors by the measured gradients, where there are any.
    """
    return layer.shared(_output_basis, weighting)


def _output_basis(layer: Layer, weighting: Weighting) -> Basis:
    metric = metric_roots(layer, weighting)
    if isinstance(layer.spec, TableSpec):
        return basis(layer_moments(layer)[1], metric)
    weight = layer.weight.double()
    return basis(weight @ (layer.inputs.covariance @ weight.T), metric)


def metric_roots(layer: Layer, weighting: Weighting) -> Roots | None:
    """Roots of the metric of errors in a layer's output; None if all errors cost the same."""
    if weighting == "output" or layer.gradient is None:
        return None
    return layer.shared(_gradient_roots)


def _gradient_roots(layer: Layer) -> Roots:
    assert layer.gradient is not None
    return roots(layer.gradient)


def pooled_basis(tables: Sequence[Layer], weighting: Weighting) -> Basis:
    """`output_basis` of several tables of one width together, each around its own mean.

    A table weighs as much as its look-ups, or as the loss feels of them.
    """
    return tables[0].shared(_pooled_basis, weighting, *tables[1:])


def _pooled_basis(first: Layer, weighting: Weighting, *others: Layer) -> Basis:
    tables = (first, *others)
    gradients = [table.gradient for table in tables if table.gradient is not None]
    by_loss = weighting == "loss" and len(gradients) == len(tables)
    metric = roots(torch.stack(gradients).mean(0)) if by_loss else None
    weights = [float(g.trace()) for g in gradients] if by_loss else map(_look_ups, tables)
    pooled = [w * layer_moments(t)[1] for w, t in zip(weights, tables, strict=True)]
    return basis(torch.stack(pooled).sum(0), metric)


def _look_ups(table: Layer) -> float:
    return float(len(table.weight) if table.counts is None else table.counts.sum())


def layer_moments(layer: Layer) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] of a table's rows as they are looked up."""
    return layer.shared(_layer_moments)


def _layer_moments(layer: Layer) -> tuple[Tensor, Tensor]:
    return moments(layer.weight, layer.counts)


def as_large(layer: Layer, basis: Basis, rank: int) -> Layer:
    """A layer of drawn numbers, scaled so that its first ranks alone are as large as all were.

    What is fitted to drawn numbers has most of its size in the ranks that are left out, and of one
    such layer behind another nothing comes out that could be learnt from. Others are as they were.
    """
    if not layer.drawn:
        return layer
    weight, kept = layer.weight.double(), basis.encoder[:, :rank] @ basis.decoder[:rank]
    first = weight @ kept if isinstance(layer.spec, TableSpec) else kept.T @ weight
    scale = float(weight.norm() / first.norm()) if first.any() else 1.0
    return replace(layer, weight=layer.weight * scale, _shared={})


def mimic_table(served: nn.Module, layer: Layer, rank: int, weighting: Weighting) -> None:
    """Fill a table with codes in the leading directions of its output."""
    assert isinstance(served, CompressedTable)
    refit = served.stored.grid is not None
    found = output_basis(layer, weighting)
    fill_table(served, layer, found, rank, layer_moments(layer)[0], refit=refit)


def fill_table(
    served: nn.Module, layer: Layer, basis: Basis, rank: int, mean: Tensor | None, *, refit: bool
) -> None:
    """Codes of every row and the decoder.

    Args:
        mean: [dim], what the code 0 decodes to; None for a linear decoder.
        refit: fit the decoder again to the codes as stored, by least squares weighted by counts.
    """
    assert isinstance(served, CompressedTable) and isinstance(served.decode, Affine)
    layer = as_large(layer, basis, rank)
    decoder, bias = basis.decoder[:rank], mean
    served.fill(table_codes(layer, basis, rank, mean), None, basis.weights[:rank])
    if refit and rank:
        decoder, bias = fit_affine(served.stored.to_float(), layer.weight, layer.counts)
    served.decode.fill(decoder, bias)


def table_codes(layer: Layer, basis: Basis, rank: int, mean: Tensor | None) -> Columns:
    """Codes of every row in the first directions of a basis, as they are to be stored."""

    def codes(most: int | None) -> Columns:
        return Columns(encoded(layer.weight, basis.encoder[:, :most], mean), layer.counts)

    return layer.codes((basis, mean is None), rank, codes)


def encoded(rows: Tensor, encoder: Tensor, mean: Tensor | None) -> Tensor:
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
    layer = as_large(layer, basis, rank)
    weight, covariance = layer.weight.double(), layer.inputs.covariance
    second = basis.decoder[:rank].T  # [outputs, rank]

    def codes(most: int | None) -> Columns:
        first = weight.T @ basis.encoder[:, :most]  # [inputs, rank]
        return Columns(first.float(), covariance.diagonal())

    served.first.fill(layer.codes(basis, rank, codes), None, basis.weights[:rank])
    stored = served.first.to_float().double()
    moved = covariance @ stored  # [inputs, rank]
    if refit:
        second = solve(stored.T @ moved, moved.T @ weight.T).T
    spread = (stored * moved).sum(0)  # of each code
    served.second.fill(second, layer.output_weights, spread)
    if layer.bias is not None:
        served.set_bias(layer.bias)


def centre_linear(served: nn.Module, layer: Layer) -> None:
    """The bias that keeps the mean of the output."""
    assert isinstance(served, LowRankLinear)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    first, second = served.first.to_float().double(), served.second.to_float().double()
    served.set_bias(bias + layer.mean_output - second @ (first.T @ layer.inputs.mean))


@torch.no_grad()
def fit_activated(served: nn.Module, layer: Layer, encoder: Tensor) -> None:
    """What is around the activation between two factors, of which the first is filled.

    Codes of the layer's own bias go where the activation can see them; the second factor and the
    bias are fitted to what it gives, by least squares over inputs that are drawn.

    Args:
        encoder: [outputs, rank], of the output.
    """
    assert isinstance(served, LowRankLinear) and served.activation is not None
    drawn = layer.inputs.drawn
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    served.middle = nn.Parameter((bias.double() @ encoder).float())
    codes = served.codes(drawn)
    second, _ = fit_affine(codes, F.linear(drawn, layer.weight, layer.bias), None)
    served.second.fill(second.T, layer.output_weights, codes.double().square().mean(0))
    served.set_bias(torch.zeros(len(layer.weight)))
    served.set_bias((F.linear(drawn, layer.weight, layer.bias) - served(drawn)).mean(0))
