"""Bits of groups of rows that a search finds while the model trains: MPE.

Source: arXiv 2409.20305. Rows are in groups by how often they are looked up, each half as long as
the next one. First every group is read as a mixture of its roundings, whose shares are learnt
(storage/bit_search.py). Then the groups of all tables get the bits that the search prefers most
among those that keep to the bytes, where the authors take what their price on bits led to, unless
those of the plan have the better score. Then the form is trained on the grids that the search left.
Other than in the paper, what has no bits is the mean of its group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build, tiered
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    Room,
    SearchedTable,
    Searches,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.bit_search import MOST, BitOption, BitSearch, row_bytes
from embedcomp.storage.index import Ranked
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.rows import StoredRows

GROUPS = (1, 2, 4, 8)  # of rows, worth trying
INDEXED = (1, 2, 4)  # where an index finds a row, whose size grows with their number
FEWEST_ROWS = 4  # of the first group
MORE = (0, 1, 2)  # bits of the first group than of the last one


@dataclass(frozen=True, kw_only=True)
class Settings(Searches):
    """The bits of a table's groups, and how its search goes."""

    bits: tuple[int, ...]  # of a number, by group, the most looked-up first
    price: float = 3e-9  # of an expected byte, in log loss, while the search goes on
    index: Literal["ranked"] | None = None  # of groups; None: rows lie in order of count


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec):
        return []
    found = [
        Settings(bits=tuple(round(cold + more * share) for share in _falling(groups)), index=index)
        for groups, index in _groupings(spec)
        for cold in range(MOST + 1)
        for more in MORE
        if 0 < cold + more <= MOST  # without bits there is nothing to train
    ]
    return list(dict.fromkeys(found))


def empty(spec: Spec, settings: Settings) -> Served:
    """Raises BadSettings where bits or groups are none that there can be."""
    shares = _shares(spec, settings)
    assert isinstance(spec, TableSpec)
    ends = tuple(round(spec.rows * share) for share in accumulate(shares))
    sizes = tuple(row_bytes(spec.dim, bits) for bits in settings.bits)
    return _table(spec, StoredRows(spec.rows, spec.dim, Tiered(ends, sizes)), settings)


def compress(layer: Layer, settings: Settings) -> Served:
    """The table on its best grids, or on those that a search left. Raises BadSettings."""
    if layer.searched is None:
        made = empty(layer.spec, settings)
        assert isinstance(made, CompressedTable)
        served, rows = _indexed(made, layer, settings)
        columns = None if layer.gradient is None else layer.gradient.diagonal()
        served.fill(rows.columns(), None, columns)
        return served
    assert isinstance(layer.spec, TableSpec)
    stored = _searched(layer.searched).taken(settings.bits)
    served, rows = _indexed(_table(layer.spec, stored, settings), layer, settings)
    if settings.start == "initial":
        assert stored.grid is not None
        stored.fill_on(rows.weight.contiguous(), stored.grid)
    return served


def searching(layer: Layer, settings: Settings) -> CompressedTable:
    """The table whose groups are read as mixtures."""
    made = empty(layer.spec, settings)
    assert isinstance(made, CompressedTable) and isinstance(made.stored.kind, Tiered)
    made.stored = BitSearch(made.rows, made.dim, made.stored.kind.ends, settings.price)
    table, rows = _indexed(made, layer, settings)
    table.fill(rows.columns())
    return table


def settle(tables: Mapping[str, SearchedTable], room: Room) -> dict[str, Settings]:
    """The bits of all groups that the searches prefer most within the bytes, or those planned.

    How likely bits are says which of a group's are better, but hardly what a group loses by them
    beside others, which is most of it where few bytes are left. So what the model scores decides.
    """
    options: dict[tuple[str, int], list[BitOption]] = {}
    for name, table in tables.items():
        for option in _searched(table.module).options():
            options.setdefault((name, option.group), []).append(option)
    none = {
        name: replace(table.settings, bits=(0,) * len(table.settings.bits))
        for name, table in tables.items()
    }
    chosen = room.knapsack(
        {key: [(one.bytes, one.loss) for one in found] for key, found in options.items()},
        room.most - room.bytes_of(none),
    )
    bits: dict[str, list[int]] = {name: [] for name in tables}
    for (name, group), place in chosen.items():
        bits[name].append(options[name, group][place].bits)
    preferred = {n: replace(table.settings, bits=tuple(bits[n])) for n, table in tables.items()}
    planned = {name: table.settings for name, table in tables.items()}

    def quality(settings: Mapping[str, Settings]) -> float:
        for name, table in tables.items():
            _searched(table.module).choose(settings[name].bits)
        return room.score()

    return max(preferred, planned, key=quality)


def _searched(module: CompressedTable) -> BitSearch:
    assert isinstance(module.stored, BitSearch)
    return module.stored


def _indexed(
    table: CompressedTable, layer: Layer, settings: Settings
) -> tuple[CompressedTable, Layer]:
    """The table with its index filled, and the layer with its rows as they are stored."""
    if not isinstance(table.index, Ranked):
        return table, layer
    chosen_by = settings.index, *_shares(layer.spec, settings)
    table.index.fill(layer.shared(tiered.tiers_of, *chosen_by))
    return table, layer.shared(tiered.tier_by_tier, *chosen_by).within(layer)


def _table(spec: TableSpec, stored: StoredRows, settings: Settings) -> CompressedTable:
    groups = len(settings.bits)
    index = None if settings.index is None else Ranked(spec.rows, spec.rows, groups)
    return build.table(spec, stored, None, index)


def _groupings(spec: TableSpec) -> Iterator[tuple[int, Literal["ranked"] | None]]:
    """Numbers of groups that a table can have, and what finds its rows then."""
    index = tiered.index_for(spec)
    for groups in GROUPS if index is None else INDEXED:
        if groups == 1:
            yield 1, None
        elif spec.counted and spec.rows >= _fewest(groups):
            yield groups, index


def _fewest(groups: int) -> int:
    """Rows of a table with so many groups, at least."""
    return FEWEST_ROWS << (groups - 1) if groups > 1 else 1


def _falling(groups: int) -> list[float]:
    """1 for the first group, 0 for the last, and what lies between at equal distances."""
    return [1 - group / max(groups - 1, 1) for group in range(groups)]


def _shares(spec: Spec, settings: Settings) -> tuple[float, ...]:
    """Of the rows, by group."""
    assert isinstance(spec, TableSpec)
    able = [groups for groups in GROUPS if spec.rows >= _fewest(groups)]
    groups = len(settings.bits)
    if groups not in able or not all(0 <= bits <= MOST for bits in settings.bits):
        raise BadSettings(
            f"bits holds {', '.join(map(str, settings.bits))}, but {spec.name} can have 0 to "
            f"{MOST} bits for each of {' or '.join(map(str, able))} groups of its {spec.rows:,} "
            "rows"
        )
    return (2.0 ** (1 - groups), *(2.0 ** (group - groups) for group in range(1, groups)))
