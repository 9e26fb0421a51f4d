"""Truncated singular value decomposition of the weight: the baseline of low-rank methods.

Every row of a table counts the same and nothing is centred. The factors come from the Gram matrix
of the weight's short side.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    found = layer.shared("svd", lambda: _basis(layer))
    if isinstance(layer.spec, LinearSpec):
        fill_linear(served, layer, found, settings.rank, refit=False)
    else:
        fill_table(served, layer, found, settings.rank, None, refit=False)
    return served


def _basis(layer: Layer) -> Basis:
    """Right singular vectors of a table [rows, dim], left ones of a weight [outputs, inputs]."""
    is_linear = isinstance(layer.spec, LinearSpec)
    return basis(gram(layer.weight.T if is_linear else layer.weight), None)
