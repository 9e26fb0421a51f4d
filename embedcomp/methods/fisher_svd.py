"""Singular value decomposition of rows weighted by their squared gradients (FWSVD).

Source: Hsu et al., ICLR 2022. With r_i the root of row i's squared gradient, summed over its
columns and averaged over the log, the decomposition of diag(r) W is cut to rank k and divided by r
again. Rows without a gradient are clamped: they weigh as little as the least of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedcomp.compress import build
from embedcomp.compress.algebra import Basis, basis, gram
from embedcomp.compress.contract import Layer, LinearSpec, Served, Spec
from embedcomp.compress.factors import fill_linear, fill_table
from embedcomp.served.formats import FactorStorage


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int
    storage: FactorStorage = "float32"


def candidates(spec: Spec) -> list[Settings]:
    return [
        Settings(rank=k, storage=storage)
        for k in build.ranks(spec)
        if k
        for storage in build.FEW_STORAGES
    ]


def empty(spec: Spec, settings: Settings) -> Served:
    bias = isinstance(spec, LinearSpec) and spec.bias
    return build.low_rank(spec, settings.rank, settings.storage, bias=bias)


def compress(layer: Layer, settings: Settings) -> Served:
    served = empty(layer.spec, settings)
    found = layer.shared("fisher_svd", lambda: _basis(layer))
    if isinstance(layer.spec, LinearSpec):
        fill_linear(served, layer, found, settings.rank, refit=False)
    else:
        fill_table(served, layer, found, settings.rank, None, refit=False)
    return served


def _basis(layer: Layer) -> Basis:
    weights = _clamped(layer)
    if isinstance(layer.spec, LinearSpec):  # directions of the output, in the metric diag(r^2)
        return basis(gram(layer.weight.T), weights.diag())
    return basis(gram(layer.weight, weights), None)


def _clamped(layer: Layer) -> Tensor:
    """r^2 of every row, float64 [rows]; all 1 where no gradients were measured."""
    found = layer.fisher
    if found is None or not bool((found > 0).any()):
        return torch.ones(len(layer.weight)).double()
    return found.clamp_min(float(found[found > 0].min()))
