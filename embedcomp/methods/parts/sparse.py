"""Tables of which few chunks of neighbouring columns are kept: density x type of numbers.

Which ones live is chosen while the table trains; what is dropped is the mean row (arXiv
2411.13052), which is the decoder's bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import layer_moments
from embedcomp.methods.parts.fewer_rows import Dropped
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Spec, TableSpec
from embedcomp.storage.columns import Columns
from embedcomp.storage.decode import Scatter
from embedcomp.storage.kinds.chunked import Bytes, Chunked, Halves, chunks_of
from embedcomp.storage.sparse import SparseRows

DENSITIES = (0.5, 0.25, 0.15, 0.1, 0.05, 0.02, 0.01)

ChunkNumbers = Literal["float16", "int8"]
KINDS: dict[ChunkNumbers, type[Chunked]] = {"float16": Halves, "int8": Bytes}


@dataclass(frozen=True, kw_only=True)
class SparseTable:
    """Settings of a method that keeps some chunks of a table."""

    density: float  # share of the chunks that lives in the end
    numbers: ChunkNumbers = "float16"  # int8: with a scale a column
    by_count: float = 1.0  # power of a row's look-ups that its squares count times, where chunks
    # are chosen by them
    dropped: Dropped = "mean"  # what stands for chunks that are dropped: the mean of rows that are
    # looked up, weighted by counts, or nothing


Settings = TypeVar("Settings", bound=SparseTable)


def candidates(spec: Spec, kind: type[Settings]) -> list[Settings]:
    """Densities x types of numbers worth trying on a table."""
    if not isinstance(spec, TableSpec):
        return []
    return [
        kind(density=density, numbers=numbers)
        for density in DENSITIES
        if density * spec.rows * chunks_of(spec.dim) >= 1
        for numbers in KINDS
    ]


def empty(spec: Spec, settings: SparseTable, rows: Callable[..., SparseRows]) -> CompressedTable:
    """The table, without numbers.

    Args:
        rows: makes stored ones of their number, their width and their kind.

    Raises:
        BadSettings: no chunk would live, or more than there are.
    """
    assert isinstance(spec, TableSpec)
    chunks = spec.rows * chunks_of(spec.dim)
    live = round(settings.density * chunks)
    if not 0 < live <= chunks:
        raise BadSettings(
            f"{spec.name} has {chunks:,} chunks, of which a density of {settings.density:g} keeps "
            f"{live:,}; take one from {1 / chunks:.1g} to 1"
        )
    stored = rows(spec.rows, spec.dim, KINDS[settings.numbers](spec.rows, live))
    decode = Scatter(spec.dim, spec.dim, "float16") if settings.dropped == "mean" else None
    return build.table(spec, stored, decode)


def fill(
    served: CompressedTable, layer: Layer, settings: SparseTable, alive: Tensor | None = None
) -> CompressedTable:
    """Fill it with the layer's rows, as differences from the mean one where that is kept.

    Args:
        alive: chunks that live, bool [rows, chunks]; None: those that it costs the most to drop.
    """
    values = layer.weight
    if isinstance(served.decode, Scatter):
        served.decode.fill(torch.arange(served.dim), layer_moments(layer)[0])
        values = values - served.decode.shift()
    weights = None if layer.counts is None else layer.counts.pow(settings.by_count)
    assert isinstance(served.stored, SparseRows)
    if alive is None:
        served.stored.fill(values, weights)
    else:
        served.stored.fill_alive(Columns(values, weights), alive)
    return served
