"""Low-rank codes of more bits the more often a row is looked up, coded by a trellis.

Numbers that are rounded one by one take a third of a bit more than rate-distortion theory asks for;
trellis-coded quantization (Marcellin and Fischer 1990; QTIP, arXiv 2406.11235) wins most of it back
(storage/kinds/trellis.py). Rows take whole bits, not whole bytes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from embedcomp.kernels import native
from embedcomp.methods.parts import tiered
from embedcomp.methods.parts.factors import Weighting
from embedcomp.sensitivity.layer import Spec
from embedcomp.storage.kinds.trellis import Trellis

log = logging.getLogger(__name__)

SHARES = (0.125, 0.125, 0.25, 0.25, 0.25)  # of the rows, by tier
COLDEST = (0, 0.5, 1, 1.5, 2, 3, 4, 5)  # bits of a column of the last one


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int  # numbers that a row is described by
    row_bits: tuple[int, ...]  # of a row of each tier, the most looked-up first
    weighting: Weighting = "loss"


def candidates(spec: Spec) -> list[Settings]:
    shapes = tiered.worth_trying(spec, len(SHARES), COLDEST)
    sizes = ((rank, tuple(round(bits) for bits in tiers)) for rank, tiers in shapes)
    found = [Settings(rank=rank, row_bits=tiers) for rank, tiers in dict.fromkeys(sizes)]
    if found and native.library() is None:  # which encodes; without it, trying them takes hours
        log.warning("%s: trellis_coded is left out: %s", spec.name, native.NotBuilt())
        return []
    return found


empty, compress = tiered.in_tiers(Trellis, SHARES)
