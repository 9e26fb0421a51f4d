"""Low-rank codes of more bits the more often a row is looked up, in even steps and whole bytes.

Grouping ids by frequency for their precision is what MPE (arXiv 2409.20305) trains; here it is
closed form, on the codes of low_rank (compress/tiered.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embedcomp.methods.parts import tiered
from embedcomp.methods.parts.factors import Weighting
from embedcomp.sensitivity.layer import Spec
from embedcomp.storage.kinds.tiered import Tiered

SHARES = (0.125, 0.125, 0.25, 0.5)  # of the rows, by tier: each is as long as all before it


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int  # numbers that a row is described by
    row_bytes: tuple[int, ...]  # of a row of each tier, the most looked-up first
    weighting: Weighting = "loss"


def candidates(spec: Spec) -> list[Settings]:
    found = tiered.worth_trying(spec, len(SHARES), range(6))
    sizes = ((rank, tuple(math.ceil(bits / 8) for bits in tiers)) for rank, tiers in found)
    return [Settings(rank=rank, row_bytes=tiers) for rank, tiers in dict.fromkeys(sizes)]


empty, compress = tiered.in_tiers(Tiered, SHARES)
