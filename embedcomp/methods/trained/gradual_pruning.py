"""A table whose chunks die by and by while it trains, those first that it costs the least to drop.

To prune or not to prune (arXiv 1710.01878), whose share of zeros rises by a cubic, here of row x 4
columns instead of single numbers, whose places would take as many bytes as they do. The mask comes
to its end well before the run does, since only evaluations from then on count.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts import sparse
from embedcomp.methods.parts.sparse import SparseTable
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.kinds.chunked import Chunked
from embedcomp.storage.sparse import GraduallyPruned, Schedule


@dataclass(frozen=True, kw_only=True)
class Settings(SparseTable):
    """How many chunks are kept, and when the others die."""

    moves: int = 40  # of the mask, evenly spread
    begin: float = 0.0  # parts of the run's steps between which it moves
    end: float = 0.5


def candidates(spec: Spec) -> list[Settings]:
    return sparse.candidates(spec, Settings)


def empty(spec: Spec, settings: Settings) -> Served:
    return _empty(spec, settings)


def compress(layer: Layer, settings: Settings) -> Served:
    return sparse.fill(_empty(layer.spec, settings), layer, settings)


def _empty(spec: Spec, settings: Settings) -> CompressedTable:
    schedule = Schedule(settings.moves, settings.begin, settings.end)

    def rows(number: int, width: int, kind: Chunked) -> GraduallyPruned:
        return GraduallyPruned(number, width, kind, schedule)

    return sparse.empty(spec, settings, rows)
