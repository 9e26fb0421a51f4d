"""Tables of which few chunks of neighbouring columns are kept: density x rank x type of numbers.

Which ones live is chosen while the table trains; what is dropped is the mean row (arXiv
2411.13052), which is the decoder's bias. Columns are the table's own or codes of low rank, of which
the first ones say the most, so that a rare row can do with its first chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import encoded, layer_moments, output_basis
from embedcomp.methods.parts.fewer_rows import Dropped
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Spec, TableSpec
from embedcomp.storage.decode import Affine, Decoder, Scatter
from embedcomp.storage.kinds.chunked import Bytes, Chunked, Halves, chunks_of
from embedcomp.storage.sparse import SparseRows

DENSITIES = (0.5, 0.25, 0.15, 0.1, 0.05, 0.02, 0.01)
RANKS = (4, 8, 16, 32)  # whole chunks, worth trying

ChunkNumbers = Literal["float16", "int8"]
KINDS: dict[ChunkNumbers, type[Chunked]] = {"float16": Halves, "int8": Bytes}


@dataclass(frozen=True, kw_only=True)
class SparseTable:
    """Settings of a method that keeps some chunks of a table."""

    density: float  # share of the chunks that lives in the end
    rank: int | None = None  # of the codes that are cut into chunks; None: the table's columns
    numbers: ChunkNumbers = "float16"  # int8: with a scale a column
    by_count: float = 1.0  # power of a row's look-ups that its squares count times, where chunks
    # are chosen by them
    dropped: Dropped = "mean"  # what stands for chunks that are dropped: the mean of rows that are
    # looked up, weighted by counts, or nothing


Settings = TypeVar("Settings", bound=SparseTable)


def candidates(spec: Spec, kind: type[Settings]) -> list[Settings]:
    """Densities x ranks x types of numbers worth trying on a table."""
    if not isinstance(spec, TableSpec):
        return []
    return [
        kind(density=density, rank=rank, numbers=numbers)
        for density in DENSITIES
        for rank in (None, *(rank for rank in RANKS if rank <= spec.dim))
        if density * spec.rows * chunks_of(rank or spec.dim) >= 1
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
    width = spec.dim if settings.rank is None else settings.rank
    if not 0 < width <= spec.dim:
        raise BadSettings(f"{spec.name} has ranks from 1 to {spec.dim}, so {width} is none of them")
    chunks = spec.rows * chunks_of(width)
    live = round(settings.density * chunks)
    if not 0 < live <= chunks:
        raise BadSettings(
            f"{spec.name} has {chunks:,} chunks, of which a density of {settings.density:g} keeps "
            f"{live:,}; take one from {1 / chunks:.1g} to 1"
        )
    stored = rows(spec.rows, width, KINDS[settings.numbers](spec.rows, live))
    return build.table(spec, stored, _decoder(spec, settings))


def _decoder(spec: TableSpec, settings: SparseTable) -> Decoder | None:
    mean = settings.dropped == "mean"
    if settings.rank is not None:
        return Affine(settings.rank, spec.dim, "float16", mean)
    return Scatter(spec.dim, spec.dim, "float16") if mean else None


def fill(served: CompressedTable, layer: Layer, settings: SparseTable) -> CompressedTable:
    """Fill it with the layer's rows; the chunks live that it costs the most to drop."""
    counts = None if layer.counts is None else layer.counts.pow(settings.by_count)
    matters = None if layer.gradient is None else layer.gradient.diagonal()
    if isinstance(served.decode, Affine):
        matters = output_basis(layer, "loss").weights[: served.code_width]
    values = codes(served, layer)
    served.fill(values, counts, matters)
    return served


def codes(served: CompressedTable, layer: Layer) -> Tensor:
    """What is cut into chunks, float32 [rows, width]; the decoder is filled."""
    mean = layer_moments(layer)[0]
    if isinstance(served.decode, Affine):
        basis, rank = output_basis(layer, "loss"), served.code_width
        shift = mean if served.decode.has_bias else None
        served.decode.fill(basis.decoder[:rank], shift)
        return encoded(layer.weight, basis.encoder[:, :rank], shift)
    if isinstance(served.decode, Scatter):
        served.decode.fill(torch.arange(served.dim), mean)
        return layer.weight - served.decode.shift()
    return layer.weight
