"""A table of as many chunks as are served from the first step on, which change places.

Dynamic sparse learning (arXiv 2402.02855): every so often the lightest chunks die, and as many
others come to life where gradients ask for it. So nothing larger is ever trained than what is
served. Here chunks are row x 4 columns, exactly as many live at all times, and gradients are summed
over all steps between two moves (storage/sparse.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedcomp.methods.parts import sparse
from embedcomp.methods.parts.sparse import SparseTable
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.kinds.chunked import Chunked
from embedcomp.storage.sparse import DynamicallySparse, Schedule, SparseRows


@dataclass(frozen=True, kw_only=True)
class Settings(SparseTable):
    """How many chunks live, and how they change places."""

    moves: int = 20  # of the mask, evenly spread
    end: float = 0.75  # part of the run's steps up to which it moves
    fraction: float = 0.5  # of the live chunks that a move replaces, at first; none at last


def candidates(spec: Spec) -> list[Settings]:
    return sparse.candidates(spec, Settings)


def empty(spec: Spec, settings: Settings) -> Served:
    return _empty(spec, settings)


def compress(layer: Layer, settings: Settings) -> Served:
    served = sparse.fill(_empty(layer.spec, settings), layer, settings)
    if layer.drawn:
        assert isinstance(served.stored, SparseRows)
        served.stored.choose(sparse.codes(served, layer), _anywhere(served.stored))
    return served


def _empty(spec: Spec, settings: Settings) -> CompressedTable:
    schedule = Schedule(settings.moves, 0.0, settings.end)

    def rows(number: int, width: int, kind: Chunked) -> DynamicallySparse:
        return DynamicallySparse(number, width, kind, schedule, settings.fraction)

    return sparse.empty(spec, settings, rows)


def _anywhere(rows: SparseRows) -> Tensor:
    """As many chunks as live, drawn: what nothing was learnt of is not worth choosing by."""
    shape, generator = rows.alive.shape, torch.Generator().manual_seed(0)
    order = torch.randperm(shape.numel(), generator=generator)
    return (order < rows.kind.live).view(shape)
