"""Low-rank codes of more bits the more often a row is looked up, coded by a trellis.

Numbers that are rounded one by one take a third of a bit more than rate-distortion theory asks for;
trellis-coded quantization (Marcellin and Fischer 1990; QTIP, arXiv 2406.11235) wins most of it back
(storage/kinds/trellis.py). Rows take whole bits, not whole bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from embedcomp.kernels import native
from embedcomp.methods.parts import tiered
from embedcomp.methods.parts.tiered import TieredRows
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.kinds.trellis import Trellis

log = logging.getLogger(__name__)

TIERS = (5, 8)  # of rows in order of count
COLDEST = (0, 0.5, 1, 1.5, 2, 3, 4, 5)  # bits of a column of the last one


@dataclass(frozen=True, kw_only=True)
class Settings(TieredRows):
    row_bits: tuple[int, ...]  # of a row of each tier, the most looked-up first


def candidates(spec: Spec) -> list[Settings]:
    index = tiered.index_for(spec)
    shapes = [s for t in TIERS for s in tiered.worth_trying(spec, t, COLDEST)]
    sizes = ((rank, tuple(round(bits) for bits in tiers)) for rank, tiers in shapes)
    found = [Settings(rank=k, row_bits=size, index=index) for k, size in dict.fromkeys(sizes)]
    if found and native.library() is None:  # which encodes; without it, trying them takes hours
        log.warning("%s: trellis_coded is left out: %s", spec.name, native.NotBuilt())
        return []
    return found


def empty(spec: Spec, settings: Settings) -> Served:
    return tiered.empty(spec, settings, Trellis)


def compress(layer: Layer, settings: Settings) -> Served:
    return tiered.compress(layer, settings, Trellis)


def suited(layer: Layer, wanted: Sequence[Settings]) -> list[Settings]:
    return tiered.suited(layer, wanted, Trellis)


def nearby(layer: Layer, settings: Settings) -> list[Settings]:
    return tiered.nearby(layer, settings, Trellis)
