"""Even steps whose scales and offsets are trained with the model (LSQ+).

Source: LSQ (arXiv 1902.08153) and LSQ+ (arXiv 2004.09576). All columns have as many bits, by tier
of count where there are tiers, and each has a scale and an offset of its own. Grids of every method
train (storage/rounding.py); what is learnt here is all that tells one column from another.

Scales begin where squared errors are smallest, not at LSQ's 2 mean|x| / sqrt(2^(bits - 1)). Of
normal values that is the same with 1 bit and 4.6 times as wide with 8, which is further than a few
epochs move a scale. ALPT, whose integers are trained without the numbers that they round, saves
memory while it trains and no byte of what is served, so it is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from embedcomp.errors import BadSettings
from embedcomp.methods import frequency_tiers
from embedcomp.methods.parts import build, tiered
from embedcomp.methods.parts.factors import Weighting
from embedcomp.sensitivity.layer import Layer, Served, Spec, TableSpec
from embedcomp.storage.columns import MOST_BITS
from embedcomp.storage.kinds.tiered import Tiered

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

TIERS = 4  # of rows in order of count
FEW_BITS = (1, 2, 3, 4, 6)  # of codes of low rank
COLDEST = (0, 1, 2, 4)  # bits of a number of the last one


@dataclass(frozen=True, kw_only=True)
class Settings:
    bits: tuple[int, ...]  # of a number, by tier, the most looked-up first; one: of every row
    rank: int | None = None  # numbers that a row is described by; None: the layer's own columns
    weighting: Weighting = "loss"
    index: Literal["ranked"] | None = None  # of tiers; None: rows lie in order of count


@dataclass(frozen=True)
class Even(Tiered):
    """Rows in tiers all of whose columns have as many bits as fit."""

    def fitted(self, rows: Columns, row_bits: int, matters: Tensor) -> Tensor:
        return rows.fitted(torch.full((rows.width,), float(row_bits // max(rows.width, 1))))


def candidates(spec: Spec) -> list[Settings]:
    every = range(1, MOST_BITS + 1)
    whole = [Settings(bits=(bits,)) for bits in every]
    if not isinstance(spec, TableSpec):
        return whole if spec.inputs else []
    ranks = [rank for rank in tiered.RANKS if rank < spec.dim]
    found = [Settings(bits=(bits,), rank=rank) for rank in ranks for bits in FEW_BITS]
    for rank, sizes in tiered.worth_trying(spec, TIERS, COLDEST):
        bits = tuple(round(size / rank) for size in sizes)
        found.append(Settings(bits=bits, rank=rank, index=tiered.index_for(spec)))
    return [*whole, *dict.fromkeys(found)]


def empty(spec: Spec, settings: Settings) -> Served:
    """Raises BadSettings where bits, tiers or columns are none that there can be."""
    if settings.rank is None:
        return build.plain(spec, _of_all_columns(spec, settings))
    return tiered.empty(spec, _in_bytes(spec, settings), Even)


def compress(layer: Layer, settings: Settings) -> Served:
    """The layer on the grid of the smallest squared error. Raises BadSettings as `empty` does."""
    if settings.rank is None:
        return build.rounded(layer, _of_all_columns(layer.spec, settings))
    return tiered.compress(layer, _in_bytes(layer.spec, settings), Even)


def _of_all_columns(spec: Spec, settings: Settings) -> Even:
    """How a layer's own columns are stored."""
    rows, width = _shape(spec)
    if len(settings.bits) != 1:
        raise BadSettings(
            f"bits holds {len(settings.bits)} numbers, but the columns of {spec.name} have one "
            "number of bits in all rows; give a rank to have tiers"
        )
    return Even((rows,), (_row_bytes(spec, width, settings.bits[0]),))


def _shape(spec: Spec) -> tuple[int, int]:
    if isinstance(spec, TableSpec):
        return spec.rows, spec.dim
    return spec.outputs, spec.inputs


def _in_bytes(spec: Spec, settings: Settings) -> frequency_tiers.Settings:
    """The same as the settings of rows in tiers."""
    rank = settings.rank
    if rank is None or not isinstance(spec, TableSpec) or not 1 <= rank <= spec.dim:
        most = f"1 to {spec.dim}" if isinstance(spec, TableSpec) else "no"
        raise BadSettings(
            f"rank is {rank}, but {spec.name} can be described by {most} numbers a row; leave rank "
            "out to store its own columns"
        )
    sizes = tuple(_row_bytes(spec, rank, bits) for bits in settings.bits)
    return frequency_tiers.Settings(
        rank=rank, row_bytes=sizes, weighting=settings.weighting, index=settings.index
    )


def _row_bytes(spec: Spec, width: int, bits: int) -> int:
    if not 0 <= bits <= MOST_BITS:
        raise BadSettings(
            f"bits holds {bits}, but numbers of {spec.name} have 0 to {MOST_BITS} bits"
        )
    return -(-width * bits // 8)
