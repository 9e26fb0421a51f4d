"""Low-rank codes of more bits the more often a row is looked up.

Rows in order of count are cut into tiers, whose rows take a fixed number of bytes each; within a
tier every bit goes to the column whose error it lowers most. It is reverse water-filling over rows
as well as columns: an error of a row counts by how often it is looked up, so by rate-distortion
theory four times as often is worth a bit more a column. Grouping ids by frequency for their
precision is what MPE (arXiv 2409.20305) trains; here it is closed form, on the codes of low_rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

from embedcomp.compress import build
from embedcomp.compress.contract import Layer, Served, Spec, TableSpec
from embedcomp.compress.factors import Weighting, fill_table, layer_moments, output_basis
from embedcomp.errors import BadSettings
from embedcomp.served.decode import Affine
from embedcomp.served.tiers import TieredRows

SHARES = (0.125, 0.125, 0.25, 0.5)  # of the rows, by tier: each is as long as all before it
FEWEST_ROWS = 64  # of a table that is worth it
RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int  # numbers that a row is described by
    row_bytes: tuple[int, ...]  # of a row of each tier, the most looked-up first
    weighting: Weighting = "loss"


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec) or not spec.by_count or spec.rows < FEWEST_ROWS:
        return []
    found = dict.fromkeys(
        Settings(rank=rank, row_bytes=_falling(rank, cold, more))
        for rank in (*(k for k in RANKS if k < spec.dim), spec.dim)
        for cold in range(6)  # bits a column
        for more in (1, 2, 3)
        if cold + more <= 8
    )
    return list(found)


def _falling(rank: int, cold: int, more: int) -> tuple[int, ...]:
    """Bytes of rows of `cold` bits a column in the last tier and `more` in the first."""
    steps = len(SHARES) - 1
    return tuple(-(-rank * (steps * cold + more * (steps - t)) // (8 * steps)) for t in range(4))


def empty(spec: Spec, settings: Settings) -> Served:
    assert isinstance(spec, TableSpec)
    ends = [round(spec.rows * share) for share in accumulate(SHARES)]
    return _with_tiers(spec, settings, ends)


def _with_tiers(spec: TableSpec, settings: Settings, ends: list[int]) -> Served:
    if len(settings.row_bytes) != len(SHARES):
        raise BadSettings(
            f"row_bytes holds {len(settings.row_bytes)} numbers, but {spec.name} has "
            f"{len(SHARES)} tiers; give the bytes of a row of each"
        )
    stored = TieredRows(spec.rows, settings.rank, ends, settings.row_bytes)
    return build.table(spec, stored, Affine(settings.rank, spec.dim, "float16", True))


def compress(layer: Layer, settings: Settings) -> Served:
    assert isinstance(layer.spec, TableSpec)
    served = _with_tiers(layer.spec, settings, _ends(layer))
    basis, mean = output_basis(layer, settings.weighting), layer_moments(layer)[0]
    fill_table(served, layer, basis, settings.rank, mean, refit=True)
    return served


def _ends(layer: Layer) -> list[int]:
    """Row after the last one of each tier; rows of a sample stand for others of their tier."""
    rows = len(layer.weight)
    stands_for = torch.ones(rows).double() if layer.stands_for is None else layer.stands_for
    bounds = torch.tensor(list(accumulate(SHARES))).double() * stands_for.sum()
    found = torch.searchsorted(stands_for.cumsum(0), bounds.round(), right=True).tolist()
    return [*found[:-1], rows]
