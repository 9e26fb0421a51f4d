"""Two factors whose ranks are trained to lie in order of worth: any first ones are a smaller model.

Maestro (arXiv 2308.14929): in each step one layer keeps a drawn number of its first ranks in a
second pass, which imitates the first, and a group lasso pulls at the tails. For a linear map of
evenly spread inputs that is the singular value decomposition; for others it is one of what the data
need. An artifact of such layers is served at many budgets, chosen when it is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import (
    centre_linear,
    fill_linear,
    mimic_table,
    output_basis,
)
from embedcomp.modules.ordered import Ordered
from embedcomp.sensitivity.layer import Layer, LinearSpec, Served, Spec, TableSpec
from embedcomp.storage.names import NestedStorage

STORAGES: tuple[NestedStorage, ...] = ("float16", "column_int8", "column_int4")


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int  # the most numbers a row or an output is described by
    storage: NestedStorage = "float16"
    lasso: float = 5e-3  # log loss that a rank costs, once for each tail of ranks that it is in,
    # where the root mean square of its codes times the norm of what it puts out is 1


def candidates(spec: Spec) -> list[Settings]:
    return [
        Settings(rank=k, storage=storage)
        for k in build.ranks(spec)
        if k > 1 and k < _most(spec)
        for storage in STORAGES
    ]


def empty(spec: Spec, settings: Settings) -> Served:
    """The layer, without numbers.

    Raises:
        BadSettings: its factors have as many numbers as the layer, or more.
    """
    most = _most(spec)
    if settings.rank >= most:
        whole, each = _numbers(spec)
        raise BadSettings(
            f"{spec.name} of {whole:,} numbers saves none at rank {settings.rank}, whose factors "
            f"have {settings.rank * each:,}; give a rank below {most:.4g}"
        )
    served = build.low_rank(spec, settings.rank, settings.storage, ordered=True)
    assert isinstance(served, Ordered)
    served.lasso = settings.lasso
    return served


def compress(layer: Layer, settings: Settings) -> Served:
    served, rank = empty(layer.spec, settings), settings.rank
    if isinstance(layer.spec, TableSpec):
        mimic_table(served, layer, rank, "loss")
        return served
    refit = settings.storage.startswith("column")
    fill_linear(served, layer, output_basis(layer, "loss"), rank, refit=refit)
    centre_linear(served, layer)
    return served


def _numbers(spec: Spec) -> tuple[int, int]:
    """Numbers of the layer, and of its factors a rank."""
    n, d = (spec.inputs, spec.outputs) if isinstance(spec, LinearSpec) else (spec.rows, spec.dim)
    return n * d, n + d


def _most(spec: Spec) -> float:
    """The rank at which factors are as large as the layer."""
    whole, each = _numbers(spec)
    return whole / each
