"""A rounded linear layer with a correction of low rank for what rounding lost (EoRA).

Source: arXiv 2410.21271. The lost weight W - W^ is projected into the eigenspace of the inputs'
second moment G (of their covariance, where a bias keeps the mean), cut to rank k there and mapped
back. That is the best correction for E[|(W - W^)
x|^2]: U_k U_k^T (W - W^), with U the leading directions of (W - W^) G (W - W^)^T. It needs no
training. With measured gradients the error is weighed by what it costs in the loss.

For linear layers: a table's correction is a code a row, and costs more than more bits do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import Weighting, metric_roots
from embedcomp.modules.linear import CorrectedLinear
from embedcomp.sensitivity.algebra import Basis, basis
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
)
from embedcomp.storage.rows import StoredRows

RANKS = (2, 4, 8, 16)

Rounded = Literal["symmetric_int8", "row_int4", "row_int2", "column_int4", "column_mixed3"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int  # of the correction
    storage: Rounded  # of the weight
    weighting: Weighting = "loss"


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, LinearSpec):
        return []
    storages: tuple[Rounded, ...] = ("row_int4", "row_int2", "column_int4", "column_mixed3")
    most = min(spec.inputs, spec.outputs) // 4
    return [Settings(rank=k, storage=s) for s in storages for k in RANKS if k <= most]


def empty(spec: Spec, settings: Settings) -> Served:
    return build.corrected(spec, settings.rank, settings.storage)


def compress(layer: Layer, settings: Settings) -> Served:
    served, rank = empty(layer.spec, settings), settings.rank
    assert isinstance(served, CorrectedLinear)
    lost = _fill(served.stored, layer)
    found = layer.shared(_basis_of_lost, settings.storage, settings.weighting)
    served.first.fill(lost.T @ found.encoder[:, :rank])
    served.second.fill(found.decoder[:rank].T)
    build.keep_mean(served, layer)
    return served


def _fill(stored: StoredRows, layer: Layer) -> Tensor:
    """Store a layer's weight; gives what of it is lost, float64 [outputs, inputs]."""
    stored.fill(layer.columns(), None, layer.inputs.second.diagonal())
    return layer.weight.double() - stored.to_float().double()


def _basis_of_lost(layer: Layer, storage: Rounded, weighting: Weighting) -> Basis:
    """The directions of the output that is lost with a weight stored like this."""
    outputs, inputs = layer.weight.shape
    lost = _fill(StoredRows(outputs, inputs, storage), layer)
    return basis(lost @ (layer.error_moment @ lost.T), metric_roots(layer, weighting))
