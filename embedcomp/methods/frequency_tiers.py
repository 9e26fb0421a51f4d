"""Low-rank codes of more bits the more often a row is looked up, in even steps and whole bytes.

Grouping ids by frequency for their precision is what MPE (arXiv 2409.20305) trains; here it is
closed form, on the codes of low_rank (parts/tiered.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from embedcomp.methods.parts import tiered
from embedcomp.methods.parts.tiered import TieredRows
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.kinds.tiered import Tiered

TIERS = 4  # of rows in order of count
COLDEST = range(6)  # bits of a column of the last one


@dataclass(frozen=True, kw_only=True)
class Settings(TieredRows):
    row_bytes: tuple[int, ...]  # of a row of each tier, the most looked-up first


def candidates(spec: Spec) -> list[Settings]:
    found = tiered.worth_trying(spec, TIERS, COLDEST)
    sizes = ((rank, tuple(math.ceil(bits / 8) for bits in tiers)) for rank, tiers in found)
    index = tiered.index_for(spec)
    return [Settings(rank=k, row_bytes=size, index=index) for k, size in dict.fromkeys(sizes)]


def empty(spec: Spec, settings: Settings) -> Served:
    return tiered.empty(spec, settings, Tiered)


def compress(layer: Layer, settings: Settings) -> Served:
    return tiered.compress(layer, settings, Tiered)


def suited(layer: Layer, wanted: Sequence[Settings]) -> list[Settings]:
    return tiered.suited(layer, wanted, Tiered)


def nearby(layer: Layer, settings: Settings) -> list[Settings]:
    return tiered.nearby(layer, settings, Tiered)
