"""What can be done with a layer: exact bytes and predicted loss of every method's candidates."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embedcomp import methods
from embedcomp.compress.contract import Layer, Served, Spec, TableSpec
from embedcomp.compress.sizes import module_bytes
from embedcomp.served.formats import CannotStore
from embedcomp.served.linear import ROUNDED, CompressedLinear
from embedcomp.served.table import CompressedTable

SAMPLED_ROWS = 1 << 16  # of a table, on which predicted losses are measured

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """One way to store one layer."""

    method: str
    settings: Any
    bytes: int
    loss: float  # predicted increase of the mean log loss


def choices(layer: Layer, names: Iterable[str]) -> list[Choice]:
    """The candidates that no other one beats in both bytes and loss, smallest first."""
    return front(candidates(layer, names))


def candidates(layer: Layer, names: Iterable[str]) -> list[Choice]:
    """Every candidate of the methods that the layer's values allow.

    Candidates are really made and read back, so that rounding counts; large tables are compressed
    on a sample of their rows (Layer.sampled).
    """
    is_table = isinstance(layer.spec, TableSpec)
    seen = layer.sampled(SAMPLED_ROWS) if is_table else layer
    return [choice for name in names for choice in _of_method(name, layer.spec, seen)]


def _of_method(name: str, spec: Spec, layer: Layer) -> list[Choice]:
    method = methods.get(name)
    found = []
    for settings in method.candidates(spec):
        try:
            loss = predicted_loss(layer, method.compress(layer, settings))
        except CannotStore as error:
            log.warning("%s: %s is left out: %s", spec.name, settings, error)
            continue
        found.append(Choice(name, settings, empty_bytes(name, spec, settings), loss))
    return found


def front(found: Sequence[Choice]) -> list[Choice]:
    """Those that are better than every smaller one, by size."""
    kept: list[Choice] = []
    for choice in sorted(found, key=lambda c: (c.bytes, c.loss)):
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return kept


def empty_on_meta(method: str, spec: Spec, settings: Any) -> Served:
    """The served module without memory."""
    with torch.device("meta"):
        return methods.get(method).empty(spec, settings)


def empty_bytes(method: str, spec: Spec, settings: Any) -> int:
    return module_bytes(empty_on_meta(method, spec, settings))


@torch.no_grad()
def predicted_loss(layer: Layer, served: Served) -> float:
    """Increase of the mean log loss by a served layer: 1/2 E[e^T G e], e the error of its output.

    For a linear layer, inputs and gradients are taken to be independent (as in K-FAC). Without
    measured gradients G is the identity, and the figure is half the squared error.
    """
    if isinstance(served, CompressedTable):
        return 0.5 * _table_error(layer, served.to_float())
    return 0.5 * (_linear_error(layer, *served.to_float()) + _input_error(layer, served))


def _table_error(layer: Layer, rows: Tensor) -> float:
    """E[e^T G e] of a table served with these rows [rows, dim]."""
    off, gradient, counts = rows - layer.weight, layer.gradient, layer.counts
    each = (off.square() if gradient is None else (off @ gradient.float()) * off).sum(1).double()
    error = float(each.mean() if counts is None else counts @ each / counts.sum())
    return max(error, 0.0)  # rounding can take a tiny one below


def _linear_error(layer: Layer, weight: Tensor, bias: Tensor | None) -> float:
    """E[e^T G e] of a linear layer served with this weight and bias."""
    off, mean = (weight - layer.weight).double(), layer.inputs.mean
    shift = _or_zeros(bias, off) - _or_zeros(layer.bias, off)
    centre = off @ mean + shift  # mean error [outputs]
    covariance = layer.inputs.covariance
    left = off if layer.gradient is None else layer.gradient @ off
    spread = ((left @ covariance) * off).sum()
    moved = centre if layer.gradient is None else layer.gradient @ centre
    return max(float(spread + moved @ centre), 0.0)


def _input_error(layer: Layer, served: Served) -> float:
    """The same of rounding the inputs, where a layer multiplies in low precision."""
    if not isinstance(served, CompressedLinear) or served.stored.storage not in ROUNDED:
        return 0.0
    weight = served.to_float()[0].double()
    left = weight if layer.gradient is None else layer.gradient @ weight
    cost = (left * weight).sum(0)  # of an error of 1 in each input
    if served.stored.storage == "bfloat16":  # steps of 2^-8 to 2^-7 of a number, evenly spread
        return float(cost @ layer.inputs.second.diagonal()) * 2**-16 / 24
    spread = layer.inputs.spread
    if spread is None:  # a number of three standard deviations on either side
        spread = 36 * float(layer.inputs.second.diagonal().mean())
    return float(cost.sum()) * spread / 255**2 / 12


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return torch.zeros_like(weight[:, 0]) if bias is None else bias.double()
