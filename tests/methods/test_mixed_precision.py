"""Bits of groups of rows: which groups there are, and what is settled and served."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from embedcomp.errors import BadSettings
from embedcomp.methods.trained import mixed_precision
from embedcomp.methods.trained.mixed_precision import Settings
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedTable
from embedcomp.recipes.searching import knapsack
from embedcomp.sensitivity.layer import (
    Layer,
    Room,
    SearchedTable,
    TableSpec,
    TableStatistics,
)
from embedcomp.storage.bit_search import MOST, TEMPERATURE, BitSearch

ROWS, DIM = 64, 4


def layer(name: str = "t", by_count: bool = True) -> Layer:
    generator = torch.Generator().manual_seed(len(name))
    spec = TableSpec(name=name, rows=ROWS, dim=DIM, pooling="sum", counted=True, by_count=by_count)
    counts = torch.arange(ROWS, 0, -1).double()
    if not by_count:
        counts = counts[torch.randperm(ROWS, generator=generator)]
    return Layer(spec, torch.randn(ROWS, DIM, generator=generator), None, TableStatistics(counts))


def table(of: Layer, **settings: Any) -> SearchedTable:
    chosen = Settings(**{"bits": (4, 2), **settings})
    module = mixed_precision.searching(of, chosen)
    module.stored.thaw()
    return SearchedTable(of, chosen, module)


def prefer(one: SearchedTable, by_group: list[list[float]]) -> None:
    """Set how likely each number of bits is."""
    assert isinstance(one.module.stored, BitSearch)
    with torch.no_grad():
        one.module.stored.logits.copy_(TEMPERATURE * torch.tensor(by_group).log())


def bytes_of(tables: dict[str, SearchedTable], settings: dict[str, Settings]) -> float:
    made = [mixed_precision.empty(tables[n].layer.spec, one) for n, one in settings.items()]
    return sum(map(module_bytes, made))


def settle(tables: dict[str, SearchedTable], most: float) -> dict[str, Settings]:
    room = Room(lambda s: bytes_of(tables, dict(s)), most, knapsack, lambda: 0.0, seed=0)
    return mixed_precision.settle(tables, room)


def likely(best: int, sharply: float) -> list[float]:
    weights = [sharply ** -abs(bits - best) for bits in range(MOST + 1)]
    return [weight / sum(weights) for weight in weights]


def test_groups_double_and_a_row_takes_whole_bytes() -> None:
    settings = Settings(bits=(6, 4, 3, 0))
    served = mixed_precision.empty(layer().spec, settings)
    assert isinstance(served, CompressedTable)
    assert served.stored.kind.parameters == {"ends": (8, 16, 32, 64), "row_bytes": (3, 2, 2, 0)}


def test_what_is_most_likely_is_taken_where_there_is_room() -> None:
    tables = {name: table(layer(name)) for name in ("a", "bc")}
    prefer(tables["a"], [likely(6, 4.0), likely(3, 4.0)])
    prefer(tables["bc"], [likely(2, 4.0), likely(0, 4.0)])
    found = settle(tables, 1e9)
    assert [found[name].bits for name in tables] == [(6, 3), (2, 0)]


@pytest.mark.slow
def test_within_the_bytes_the_most_likely_bits_of_all_are_taken() -> None:
    tables = {name: table(layer(name)) for name in ("a", "bc")}
    chances = [likely(6, 1.3), likely(5, 2.0), likely(6, 5.0), likely(3, 1.1)]
    prefer(tables["a"], chances[:2])
    prefer(tables["bc"], chances[2:])
    most = bytes_of(tables, {name: one.settings for name, one in tables.items()})

    def chance(bits: tuple[int, ...]) -> float:
        product = 1.0
        for of, number in zip(chances, bits, strict=True):
            product *= of[number]
        return product

    def split(bits: tuple[int, ...]) -> dict[str, Settings]:
        return {"a": Settings(bits=bits[:2]), "bc": Settings(bits=bits[2:])}

    every = itertools.product(range(MOST + 1), repeat=4)
    fitting = [bits for bits in every if bytes_of(tables, split(bits)) <= most]
    found = settle(tables, most)
    assert bytes_of(tables, found) <= most
    taken = (*found["a"].bits, *found["bc"].bits)
    assert chance(taken) == pytest.approx(max(map(chance, fitting)), rel=1e-4)


def test_what_is_likely_but_scores_worse_than_the_plan_is_not_taken() -> None:
    tables = {name: table(layer(name)) for name in ("a", "bc")}
    planned = {name: one.settings for name, one in tables.items()}
    for one in tables.values():
        prefer(one, [likely(0, 9.0), likely(6, 9.0)])  # nothing for what is looked up most

    def near() -> float:
        off = [one.module.to_float() - one.layer.weight for one in tables.values()]
        weights = [one.layer.statistics.counts for one in tables.values()]
        return -float(sum((o.square().sum(1) * w).sum() for o, w in zip(off, weights, strict=True)))

    room = Room(lambda s: bytes_of(tables, dict(s)), bytes_of(tables, planned), knapsack, near, 0)
    assert mixed_precision.settle(tables, room) == planned
    for one in tables.values():
        prefer(one, [likely(6, 9.0), likely(3, 9.0)])
    assert mixed_precision.settle(tables, replace(room, most=1e9)) != planned


@pytest.mark.parametrize("by_count", [True, False])
@pytest.mark.parametrize("start", ["searched", "initial"])
def test_the_form_reads_what_the_search_left(by_count: bool, start: str) -> None:
    of = layer(by_count=by_count)
    one = table(of, index=None if by_count else "ranked", start=start)
    assert one.module.stored.master is not None
    with torch.no_grad():
        one.module.stored.master += 0.1
    sure = [[float(bits == best) + 1e-30 for bits in range(MOST + 1)] for best in (5, 1)]
    prefer(one, sure)
    read = one.module.to_float().detach()
    left = one.module.index
    weight = one.module.stored.master.detach()
    weight = weight if left is None else weight[left(torch.arange(ROWS))]
    begun = of.weight if start == "initial" else weight
    searched = Layer(**{**vars(of), "weight": begun, "searched": one.module, "_shared": {}})
    settings = Settings(**{**vars(one.settings), "bits": (5, 1)})
    served = mixed_precision.compress(searched, settings)
    assert isinstance(served, CompressedTable)
    assert module_bytes(served) == module_bytes(mixed_precision.empty(of.spec, settings))
    same = torch.allclose(served.to_float(), read, atol=1e-6)
    assert same is (start == "searched")
    served.stored.thaw()
    master = served.stored.master
    assert master is not None
    master = master.detach()
    back = master if served.index is None else master[served.index(torch.arange(ROWS))]
    assert torch.equal(back, begun)


def test_bits_that_there_cannot_be_are_refused() -> None:
    for bits in ((7,), (1, 2, 3), (-1,)):
        with pytest.raises(BadSettings, match="0 to 6 bits for each of 1 or 2 or 4 groups"):
            mixed_precision.empty(layer().spec, Settings(bits=bits))
