"""Some columns of a table; the others are the mean row's: magnitude pruning of whole columns.

A column is as large as what it costs to drop it: its variance over the rows that are looked up,
weighted by "loss" times what an error in it costs. The columns of the mean row, weighted by counts,
stand for what is dropped (arXiv 2411.13052).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import Weighting, layer_moments
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.decode import Scatter
from embedcomp.storage.names import FactorStorage
from embedcomp.storage.rows import StoredRows


@dataclass(frozen=True, kw_only=True)
class Settings:
    columns: int  # that are kept
    storage: FactorStorage = "float16"
    weighting: Weighting = "loss"
    dropped: Literal["mean", "zero"] = "mean"  # what stands for columns that are dropped


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec):
        return []
    return [
        Settings(columns=columns, storage=storage)
        for columns in build.ranks(spec)
        if 0 < columns < spec.dim
        for storage in build.FEW_STORAGES
    ]


def empty(spec: Spec, settings: Settings) -> Served:
    assert isinstance(spec, TableSpec)
    if not 0 < settings.columns <= spec.dim:
        raise BadSettings(
            f"{spec.name} has {spec.dim} columns, so {settings.columns} of them cannot be kept"
        )
    stored = StoredRows(spec.rows, settings.columns, settings.storage)
    return build.table(
        spec, stored, Scatter(settings.columns, spec.dim, build.of_decoder(settings.storage))
    )


def compress(layer: Layer, settings: Settings) -> Served:
    served = empty(layer.spec, settings)
    assert isinstance(served, CompressedTable) and isinstance(served.decode, Scatter)
    mean = layer_moments(layer)[0]
    if settings.dropped == "zero":
        mean = torch.zeros_like(mean)
    columns = _largest(layer, mean, settings)
    served.decode.fill(columns, mean)
    weights = None if layer.gradient is None else layer.gradient.diagonal()[columns]
    served.fill((layer.weight - served.decode.shift())[:, columns], layer.counts, weights)
    return served


def _largest(layer: Layer, mean: Tensor, settings: Settings) -> Tensor:
    """Places of the kept columns, in their order."""
    centre, covariance = layer_moments(layer)
    sizes = covariance.diagonal() + (centre - mean).square()
    if settings.weighting == "loss" and layer.gradient is not None:
        sizes = sizes * layer.gradient.diagonal()
    return torch.argsort(sizes, descending=True, stable=True)[: settings.columns].sort().values
