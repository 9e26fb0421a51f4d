"""Low-rank codes of more bits the more often a row is looked up.

Rows are cut into tiers by how often they are looked up, and the rows of a tier take a fixed number
of bits each; within a tier every bit goes to the column whose error it lowers most. It is reverse
water-filling over rows as well as columns: an error of a row counts by how often it is looked up,
so by rate-distortion theory four times as often is worth a bit more a column.

Where rows lie in order of count, a tier is a range of ids. Elsewhere rows are stored tier by tier,
and an index of about 0.3 bytes an id finds them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import (
    Weighting,
    fill_table,
    layer_moments,
    output_basis,
    table_codes,
)
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Spec, TableSpec, TableStatistics
from embedcomp.storage.assigned import stored_rows
from embedcomp.storage.columns import falling
from embedcomp.storage.decode import Affine
from embedcomp.storage.index import IndexForm, Ranked
from embedcomp.storage.tiers import InTiers, Tiers

SHARES = {  # of the rows, by tier, for each number of tiers
    1: (1.0,),
    2: (0.25, 0.75),
    3: (1 / 64, 7 / 64, 0.875),  # where a few rows are most of the look-ups
    4: (0.125, 0.125, 0.25, 0.5),  # each is as long as all before it
    5: (0.125, 0.125, 0.25, 0.25, 0.25),
    8: (1 / 128, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 0.125, 0.25, 0.5),
}
INDEXED = (4, 3, 2)  # tiers where an index finds a row, whose bits are those of its tier's number
FEWEST_ROWS = 64  # of a table that is worth it
FEWEST_OF_TIER = 8
RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
Ranks = Literal["ranked"]  # the index by which rows in tiers are found
MORE = (1, 2, 3)  # bits of a column in the first tier than in the last one
NEAR = (0.7, 0.84, 0.92, 0.96, 0.98, 0.99, 1.0, 1.01, 1.02, 1.04, 1.08, 1.16, 1.3)  # times a size


@dataclass(frozen=True, kw_only=True)
class TieredRows:
    """Settings of a method whose rows take more bits the more often they are looked up."""

    rank: int  # numbers that a row is described by
    weighting: Weighting = "loss"
    index: Ranks | None = None  # None: rows lie in order of count


Sized = TypeVar("Sized", bound=TieredRows)


def index_for(spec: Spec) -> Ranks | None:
    """What finds the rows of a table in tiers."""
    return None if isinstance(spec, TableSpec) and spec.by_count else "ranked"


def worth_trying(
    spec: Spec, tiers: int, coldest: Sequence[float]
) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Ranks, and bits of a row of each tier, that fall from tier to tier by the same number.

    Args:
        tiers: where rows lie in order of count; elsewhere there are as many as `INDEXED`.
        coldest: bits of a column in the last tier.
    """
    if not isinstance(spec, TableSpec) or not spec.counted or spec.rows < FEWEST_ROWS:
        return
    for number in (tiers,) if spec.by_count else INDEXED:
        if spec.rows * min(SHARES[number]) < FEWEST_OF_TIER:
            continue
        falling = [(number - 1 - tier) / (number - 1) for tier in range(number)]
        for rank in (*(k for k in RANKS if k < spec.dim), spec.dim):
            for cold in coldest:
                for more in MORE:
                    if cold + more <= 8:
                        yield rank, tuple(rank * (cold + more * step) for step in falling)


def empty(spec: Spec, settings: TieredRows, kind: type[InTiers]) -> CompressedTable:
    """The table, without numbers.

    Args:
        kind: how rows are stored; the settings hold what it has beside `ends` by the same names.

    Raises:
        BadSettings: rows are in no number of tiers that there are shares for.
    """
    assert isinstance(spec, TableSpec)
    return _in_tiers(spec, settings, kind, _ends(spec, settings, kind))


def compress(layer: Layer, settings: TieredRows, kind: type[InTiers]) -> CompressedTable:
    """The table, filled. Raises BadSettings as `empty` does."""
    served, layer = _as_stored(layer, settings, kind)
    basis, mean = output_basis(layer, settings.weighting), layer_moments(layer)[0]
    assert isinstance(layer.spec, TableSpec)
    inside = build.table(layer.spec, served.stored, served.decode)
    fill_table(inside, layer, basis, settings.rank, mean, refit=True)
    return served


def suited(layer: Layer, wanted: Sequence[Sized], kind: type[Tiers]) -> list[Sized]:
    """Settings of the same ranks that are no larger, with the tiers that suit the layer best."""
    lines: dict[Sized, tuple[list[int], list[Sized]]] = {}
    found = []
    for one in wanted:
        key = _resized(one, kind, [0] * len(_sizes(one, kind)))
        if key not in lines:
            lines[key] = _along(layer, one, kind)
        totals, line = lines[key]
        within = bisect_right(totals, _total(layer.spec, one, kind))
        found.append(line[within - 1] if within else one)
    return list(dict.fromkeys(found))


def nearby(layer: Layer, settings: Sized, kind: type[Tiers]) -> list[Sized]:
    """Settings of the same rank and about the same size, with tiers that suit the layer."""
    totals, line = _along(layer, settings, kind)
    now = _total(layer.spec, settings, kind)
    places = (bisect_left(totals, factor * now) for factor in NEAR)
    return [line[place] for place in dict.fromkeys(places) if place < len(line)]


def _along(layer: Layer, settings: Sized, kind: type[Tiers]) -> tuple[list[int], list[Sized]]:
    """The best sizes of tiers in as many bytes, the smallest first, of settings but for the sizes.

    Errors add up over tiers, so by the errors that are foreseen each bit of a row goes to the tier
    where it lowers the loss most for the bytes that all rows of the tier take for it.

    Returns:
        What all rows take, in the kind's unit, and the settings.
    """
    lengths = _lengths(layer.spec, settings, kind)
    served, layer = _as_stored(layer, settings, kind)
    stored = served.stored.kind
    assert isinstance(stored, kind)
    basis, mean = output_basis(layer, settings.weighting), layer_moments(layer)[0]
    codes = table_codes(layer, basis, settings.rank, mean)
    steps = []
    for tier, part in enumerate(codes.split(stored.lengths)):
        if lengths[tier] and (part.weights is None or bool(part.weights.any())):
            errors = stored.errors(part) * basis.weights[: settings.rank]
            gains = _gains(errors, kind.grows_by)
            steps += [(gain / lengths[tier], more, tier) for gain, more in gains if gain > 0]
    totals, found, sizes = [0], [], [0] * len(lengths)
    for _, more, tier in sorted(steps, reverse=True):
        sizes[tier] += more
        totals.append(totals[-1] + more * lengths[tier])
        found.append(_resized(settings, kind, sizes))
    return totals[1:], found


def _sizes(settings: TieredRows, kind: type[InTiers]) -> tuple[int, ...]:
    """Of a row of each tier, in the kind's unit."""
    found: tuple[int, ...] = getattr(settings, kind.unit)
    return found


def _resized(settings: Sized, kind: type[InTiers], sizes: Sequence[int]) -> Sized:
    values: dict[str, Any] = {kind.unit: tuple(sizes)}
    return replace(settings, **values)


def _lengths(spec: Spec, settings: TieredRows, kind: type[InTiers]) -> list[int]:
    """Rows of each tier."""
    return [b - a for a, b in pairwise((0, *_ends(spec, settings, kind)))]


def _total(spec: Spec, settings: TieredRows, kind: type[InTiers]) -> int:
    """What all rows take, in the kind's unit."""
    return int(np.dot(_sizes(settings, kind), _lengths(spec, settings, kind)))


def _gains(errors: Tensor, grows_by: int) -> list[tuple[float, int]]:
    """What a row that grows brings, as steps that each bring less: of a unit, and their units.

    Args:
        errors: [bits + 1, width], of columns with 0, 1, 2, ... bits.
        grows_by: bits that are a unit.
    """
    columns = (errors[:-1] - errors[1:]).T.tolist()
    steps = sorted((step for column in columns for step in falling(column)), reverse=True)
    bits = [0, *accumulate(number for _, number in steps)]
    gained = [0.0, *accumulate(gain * number for gain, number in steps)]
    at_units = np.interp(np.arange(0, bits[-1] + 1, grows_by), bits, gained)
    return falling(np.diff(at_units).tolist())


def laid_out(layer: Layer, settings: TieredRows, kind: type[InTiers]) -> CompressedTable:
    """The table whose index is filled, and nothing else. Raises BadSettings as `empty` does."""
    shares = _shares(layer.spec, settings, kind)
    assert isinstance(layer.spec, TableSpec)
    tier_of = layer.shared(tiers_of, settings.index, *shares)
    ends = tier_of.bincount(minlength=len(shares)).cumsum(0).tolist()
    served = _in_tiers(layer.spec, settings, kind, ends)
    if isinstance(served.index, Ranked):
        served.index.fill(tier_of)
    return served


def _as_stored(
    layer: Layer, settings: TieredRows, kind: type[InTiers]
) -> tuple[CompressedTable, Layer]:
    """The table whose index is filled, and the layer with its rows in their order."""
    served = laid_out(layer, settings, kind)
    if isinstance(served.index, Ranked):
        shares = _shares(layer.spec, settings, kind)
        layer = layer.shared(tier_by_tier, settings.index, *shares).within(layer)
    return served, layer


def _ends(spec: Spec, settings: TieredRows, kind: type[InTiers]) -> list[int]:
    """The row after the last one of each tier."""
    assert isinstance(spec, TableSpec)
    return [round(spec.rows * share) for share in accumulate(_shares(spec, settings, kind))]


def _shares(spec: Spec, settings: TieredRows, kind: type[InTiers]) -> tuple[float, ...]:
    number = len(_sizes(settings, kind))
    if number not in SHARES:
        raise BadSettings(
            f"{kind.unit} holds {number} numbers, but {spec.name} can have "
            f"{' or '.join(map(str, SHARES))} tiers; give the size of a row of each"
        )
    return SHARES[number]


def _in_tiers(
    spec: TableSpec, settings: TieredRows, kind: type[InTiers], ends: Sequence[int]
) -> CompressedTable:
    said = {f.name: tuple(getattr(settings, f.name)) for f in fields(kind) if f.name != "ends"}
    stored = stored_rows(spec.rows, settings.rank, kind(ends=tuple(ends), **said))
    decode = Affine(settings.rank, spec.dim, "float16", True)
    index = None if settings.index is None else Ranked(spec.rows, spec.rows, len(ends))
    return build.table(spec, stored, decode, index)


def tiers_of(layer: Layer, index: IndexForm | None, *shares: float) -> Tensor:
    """The tier of each row, int64 [rows]; rows of a sample stand for others of their tier."""
    rows = len(layer.weight)
    order = torch.arange(rows)
    if index and layer.own_counts is not None:
        order = torch.argsort(layer.own_counts, descending=True, stable=True)
    stands_for = torch.ones(rows).double() if layer.stands_for is None else layer.stands_for
    bounds = torch.tensor(list(accumulate(shares))).double() * stands_for.sum()
    covered = stands_for[order].cumsum(0)
    ends = torch.searchsorted(covered, bounds.round(), right=True)
    ends[-1] = rows
    found = torch.empty(rows, dtype=torch.int64)
    found[order] = torch.bucketize(torch.arange(rows), ends, right=True)
    return found


def tier_by_tier(layer: Layer, *chosen_by: Any) -> Layer:
    """The table with its rows as they are stored."""
    assert isinstance(layer.spec, TableSpec) and isinstance(layer.statistics, TableStatistics)
    order = torch.argsort(layer.shared(tiers_of, *chosen_by), stable=True)
    spec = replace(layer.spec, padding_idx=None)
    statistics = TableStatistics(layer.statistics.counts[order], layer.gradient)
    return Layer(spec, layer.weight[order], None, statistics)
