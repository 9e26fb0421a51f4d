"""Chunks of a table's rows read one array of fewer chunks, which permutations spread evenly.

ROBE (arXiv 2108.02191) lets chunks begin anywhere in an array by one universal hash. Here they are
whole rows of it, and each partition of as many chunks as the array has is permuted by itself, as
STABLE-RPS does (arXiv 2310.11611): every row is read by as many chunks as any other, and an array
as large as the table is the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

from embedcomp.methods.parts import sharing
from embedcomp.methods.parts.sharing import SharedRows
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, Spec, TableSpec
from embedcomp.storage.probes import Permuted, Probes, is_prime, prime_up_to

CHUNKS = (1, 4)  # of a row, worth trying


@dataclass(frozen=True, kw_only=True)
class Settings(SharedRows):
    """How large the array is, and how many chunks a row has."""

    chunks: int = 4  # that a row is cut into


def candidates(spec: Spec) -> list[Settings]:
    every = [
        replace(one, chunks=chunks)
        for chunks in CHUNKS
        for one in sharing.candidates(spec, Settings, parts=chunks)
    ]
    return sharing.unlike(spec, every, empty)


def empty(spec: Spec, settings: Settings) -> CompressedTable:
    assert isinstance(spec, TableSpec)
    chunks, ids = settings.chunks, spec.rows

    def probes(own: int, rows: int) -> Probes:
        read = (ids - own) * chunks
        size = next(n for n in count(read) if is_prime(n)) if rows >= read else prime_up_to(rows)
        each = tuple(
            Permuted(rows=size, first=j, stride=chunks, salt=settings.salt) for j in range(chunks)
        )
        return Probes(probes=each, own=own, own_start=size)

    return sharing.empty(spec, settings, probes, parts=chunks)


def compress(layer: Layer, settings: Settings) -> Served:
    return sharing.fill(empty(layer.spec, settings), layer)
