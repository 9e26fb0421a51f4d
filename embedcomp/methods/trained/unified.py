"""One pool of short rows for all tables, of which each table reads so many chunks (multiplexing).

Unified embedding, arXiv 2305.12102: chunk j of id i of table t is row h(i; t, j) of the pool, and a
table's chunks are put beside each other; their number is the only knob of a table. Where the model
wants wider rows than that, a decoder of the table's own makes them, which is folded where nothing
but a linear layer reads them. Tables that are 1 wide, which models sum over features before
anything could tell them apart, are left out, as the authors say. Numbers drawn for a pool are as
small as the model's own tables: with a standard deviation of 1 the authors lose 5 points of AUC.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from zlib import crc32

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build, pooling, sharing
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, SharesPool, Spec, TableSpec
from embedcomp.storage.decode import Affine
from embedcomp.storage.index import Probed
from embedcomp.storage.names import FactorStorage
from embedcomp.storage.probes import Hash, Probe, Probes
from embedcomp.storage.rows import StoredRows

WIDTHS = (2, 4)  # of a chunk, worth trying
MOST_CHUNKS = 6  # the authors' most
ROWS = 256  # of a pool, until a plan says how many


@dataclass(frozen=True, kw_only=True)
class Settings(SharesPool):
    """How much of the pool a table reads, and what the pool is."""

    rows: int = ROWS
    width: int = 4  # of a row of the pool
    chunks: int = 2  # that the table reads for an id
    storage: FactorStorage = sharing.STORAGE

    @property
    def pool(self) -> Hashable:
        return self.rows, self.width, self.storage


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec) or spec.dim == 1:
        return []
    return [
        Settings(width=width, chunks=chunks)
        for width in WIDTHS
        for chunks in range(1, MOST_CHUNKS + 1)
        if width * chunks <= spec.dim
    ]


def empty(spec: Spec, settings: Settings) -> CompressedTable:
    assert isinstance(spec, TableSpec)
    codes = settings.chunks * settings.width
    if not 0 < codes <= spec.dim:
        raise BadSettings(
            f"{spec.name} has {spec.dim} columns, so it cannot read {settings.chunks} chunks of "
            f"{settings.width}; read fewer, or a pool of narrower rows"
        )
    probes = Probes(probes=tuple(_probe(spec, settings, j) for j in range(settings.chunks)))
    stored = StoredRows(settings.rows, settings.width, settings.storage)
    decode = None
    if codes < spec.dim:
        decode = Affine(codes, spec.dim, build.of_decoder(settings.storage), True)
    return build.table(spec, stored, decode, Probed(settings.rows, probes))


def compress(layer: Layer, settings: Settings) -> Served:
    served = sharing.fill(empty(layer.spec, settings), layer)
    if layer.group:
        first, *others = layer.group
        served.store_with(first.shared(_pooled, settings, *others))
    return served


def _pooled(first: Layer, settings: Settings, *others: Layer) -> CompressedTable:
    """A table with the pool that these begin with if all of them read as many chunks."""
    layers = first, *others
    tables = [sharing.fill(empty(one.spec, _of(one.spec, settings)), one) for one in layers]
    pooling.join(tables, layers)
    return tables[0]


def _of(spec: Spec, settings: Settings) -> Settings:
    """As many chunks of the settings as a table's columns can be."""
    assert isinstance(spec, TableSpec)
    return replace(settings, chunks=min(settings.chunks, spec.dim // settings.width))


def _probe(spec: TableSpec, settings: Settings, chunk: int) -> Probe:
    """The hash of a chunk, whose salt no other chunk of another table is likely to have."""
    return Hash(rows=settings.rows, salt=crc32(f"{spec.name} {chunk}".encode()) >> 1)
