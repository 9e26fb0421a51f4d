"""Truncated decompositions: the two factors that a basis of the weight gives, nothing centred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import fill_linear, fill_table
from embedcomp.sensitivity.algebra import Basis
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
)
from embedcomp.storage.names import FactorStorage


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """Settings of such a method; each has a class of its own."""

    rank: int
    storage: FactorStorage = "float32"


S = TypeVar("S", bound=Truncated)


def candidates_of(settings: type[S]) -> Callable[[Spec], list[S]]:
    """A method's `candidates`."""
    return lambda spec: [
        settings(rank=k, storage=storage)
        for k in build.ranks(spec)
        if k
        for storage in build.FEW_STORAGES
    ]


def empty(spec: Spec, settings: Truncated) -> Served:
    bias = isinstance(spec, LinearSpec) and spec.bias
    return build.low_rank(spec, settings.rank, settings.storage, bias=bias)


def by(basis_of: Callable[[Layer], Basis]) -> Callable[[Layer, Truncated], Served]:
    """A method's `compress`.

    Args:
        basis_of: right singular vectors of a table [rows, dim], left ones of a linear layer's
            weight [outputs, inputs].
    """

    def compress(layer: Layer, settings: Truncated) -> Served:
        served = empty(layer.spec, settings)
        found = layer.shared(basis_of)
        if isinstance(layer.spec, LinearSpec):
            fill_linear(served, layer, found, settings.rank, refit=False)
        else:
            fill_table(served, layer, found, settings.rank, None, refit=False)
        return served

    return compress
