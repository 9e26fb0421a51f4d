"""What a compressed layer costs: the predicted increase of the mean log loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from embedcomp.modules.linear import (
    ROUNDED,
    CompressedLinear,
    LowRankLinear,
    ServedLinear,
)
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.algebra import root
from embedcomp.sensitivity.layer import Layer, Served
from embedcomp.sensitivity.sketch import Root, root_of


@torch.no_grad()
def predicted_loss(layer: Layer, served: Served) -> float:
    """Increase of the mean log loss by a served layer: 1/2 E[e^T G e], e the error of its output.

    For a linear layer, inputs and gradients are taken to be independent (as in K-FAC). Without
    measured gradients G is the identity, and the figure is half the squared error. A layer with an
    activation inside is no matrix: its outputs are compared on inputs that are drawn.
    """
    if isinstance(served, CompressedTable):
        return 0.5 * _table_error(layer, served.to_float())
    if isinstance(served, LowRankLinear) and served.activation is not None:
        return 0.5 * _drawn_error(layer, served)
    return 0.5 * (_linear_error(layer, served) + _input_error(layer, served))


def _table_error(layer: Layer, rows: Tensor) -> float:
    """E[e^T G e] of a table served with these rows [rows, dim]."""
    each, counts = row_errors(rows - layer.weight, layer.gradient).double(), layer.counts
    error = float(each.mean() if counts is None else counts @ each / counts.sum())
    return max(error, 0.0)  # rounding can take a tiny one below


def row_errors(off: Tensor, gradient: Tensor | None) -> Tensor:
    """e^T G e of every row's error e, float32 [rows]; without gradients G is the identity.

    Args:
        off: float32 [rows, dim].
    """
    return (off.square() if gradient is None else (off @ gradient.float()) * off).sum(1)


def _drawn_error(layer: Layer, served: ServedLinear) -> float:
    """E[e^T G e] over normal inputs of the measured mean and covariance."""
    drawn = layer.inputs.drawn
    off = served(drawn) - F.linear(drawn, layer.weight, layer.bias)
    return max(float(row_errors(off, layer.gradient).mean(dtype=torch.float64)), 0.0)


def _linear_error(layer: Layer, served: ServedLinear) -> float:
    """E[e^T G e] of a linear layer."""
    mean, roots = layer.inputs.mean, layer.shared(_roots)
    if isinstance(served, LowRankLinear):  # two thin products instead of a wide one
        first, second, bias = served.first.to_float(), served.second.to_float(), served.bias
        product = roots.of_outputs(second) @ roots.by_inputs.seen_by(first.T)
        spread = product - layer.shared(_seen)
        centre = second.double() @ (first.double().T @ mean) - layer.mean_output
    else:
        weight, bias = served.to_float()
        off = weight - layer.weight
        spread = roots.of_outputs(roots.by_inputs.seen_by(off))
        centre = off.double() @ mean
    centre = centre + _or_zeros(bias, layer.weight) - _or_zeros(layer.bias, layer.weight)
    moved = centre if layer.gradient is None else layer.gradient @ centre
    return max(float(spread.square().sum(dtype=torch.float64) + moved @ centre), 0.0)


class _Roots(NamedTuple):
    """Float32 roots of the inputs' covariance and of G, [l, outputs]; None: G is the identity.

    E[e^T G e] of a centred error is then a sum of squares, which float32 does not cancel.
    """

    by_inputs: Root
    by_outputs: Tensor | None

    def of_outputs(self, values: Tensor) -> Tensor:
        """Values [outputs, n] as the loss feels them, [l, n]."""
        return values if self.by_outputs is None else self.by_outputs @ values


def _roots(layer: Layer) -> _Roots:
    by_inputs = root_of(layer.inputs.covariance).float()
    by_outputs = None if layer.gradient is None else root(layer.gradient).T.float()
    return _Roots(by_inputs, by_outputs)


def _seen(layer: Layer) -> Tensor:
    """The spread of the layer's own output as the loss feels it, float32 [l, directions]."""
    roots = layer.shared(_roots)
    return roots.of_outputs(roots.by_inputs.seen_by(layer.weight))


def _input_error(layer: Layer, served: Served) -> float:
    """Predicted loss from rounding a layer's inputs, where it multiplies in low precision."""
    if not isinstance(served, CompressedLinear) or served.stored.kind.precision not in ROUNDED:
        return 0.0
    weight = served.to_float()[0].double()
    left = weight if layer.gradient is None else layer.gradient @ weight
    cost = (left * weight).sum(0)  # of an error of 1 in each input
    if served.stored.kind.precision == "bfloat16":
        # a step is 2^-7 of the number's power of two, whose square is 0.54 of the number's where
        # logarithms are spread evenly
        return float(cost @ layer.inputs.second.diagonal()) * 0.54 * 2**-14 / 12
    spread = layer.inputs.spread
    if spread is None:  # a number of three standard deviations on either side
        spread = 36 * float(layer.inputs.second.diagonal().mean())
    return float(cost.sum()) * spread / 255**2 / 12


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return torch.zeros(len(weight)).double() if bias is None else bias.double()
