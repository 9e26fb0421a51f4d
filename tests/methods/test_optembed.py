"""OptEmbed: the step and its slope, widths that are drawn, evolution, and what is served."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedcomp.methods.parts.evolution import Candidate, Evolution
from embedcomp.methods.trained import optembed
from embedcomp.methods.trained.optembed import Settings
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
from embedcomp.storage.row_search import DrawnWidths, ThresholdedRows, lives
from embedcomp.storage.training import Progress

ROWS, DIM = 40, 4


def layer(name: str = "t", seed: int = 0, drawn: bool = False) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    spec = TableSpec(name=name, rows=ROWS, dim=DIM, pooling="sum", counted=True, by_count=False)
    scales = torch.tensor([0.5, 2.0, 0.1, 1.0])
    weight = torch.randn(ROWS, DIM, generator=generator) * scales + 0.3
    counts = torch.randint(1, 9, (ROWS,), generator=generator).double()
    return Layer(spec, weight, None, TableStatistics(counts), drawn=drawn)


def table(of: Layer, **settings: object) -> SearchedTable:
    values = {"share": 0.5, "columns": 2, "storage": "float32", **settings}
    chosen = Settings(**values)
    module = optembed.searching(of, chosen)
    module.stored.thaw()
    return SearchedTable(of, chosen, module)


def rows_of(of: SearchedTable) -> ThresholdedRows:
    assert isinstance(of.module.stored, ThresholdedRows)
    return of.module.stored


def widths_of(of: SearchedTable) -> DrawnWidths:
    found: object = of.module.decode
    assert isinstance(found, DrawnWidths)
    return found


def at(step: int) -> Progress:
    return Progress("search", step, 100, 10, seed=3)


def test_the_step_has_the_slope_of_the_paper() -> None:
    z = torch.tensor([0.0, 0.2, 0.4, 0.7, 1.0, 1.01, -0.2, -1.5], requires_grad=True)
    found = lives(z)
    assert found.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    found.sum().backward()
    assert z.grad is not None
    wanted = [2, 1.2, 0.4, 0.4, 0.4, 0, 1.2, 0]
    assert z.grad.tolist() == pytest.approx(wanted, abs=1e-6)


def test_rows_and_thresholds_both_learn_from_whether_a_row_lives() -> None:
    """One row (0.5, -0.4) and t = 0.7: z = 0.2, so the slope is 1.2."""
    rows = ThresholdedRows(1, torch.zeros(2), price=0.0, rate=1.0)
    rows.fill(torch.tensor([[0.5, -0.4]]))
    rows.thaw()
    with torch.no_grad():
        rows.threshold.fill_(0.7)
    read = rows.gather(torch.tensor([0]))
    assert torch.equal(read, torch.tensor([[0.5, -0.4]]))
    read.backward(torch.tensor([[1.0, 2.0]]))  # against e: 0.5 - 0.8 = -0.3
    assert rows.threshold.grad is not None and rows.master is not None
    assert rows.threshold.grad.item() == pytest.approx(-1.2 * -0.3, rel=1e-4)
    assert rows.master.grad is not None
    wanted = [1 + 1.2 * -0.3, 2 - 1.2 * -0.3]
    assert rows.master.grad.to_dense()[0].tolist() == pytest.approx(wanted, rel=1e-4)


def test_what_does_not_live_reads_as_the_base_and_a_price_pulls_thresholds_up() -> None:
    base = torch.tensor([1.0, 1.0])
    rows = ThresholdedRows(3, base, price=0.2, rate=2.0)
    rows.fill(torch.tensor([[3.0, 1.0], [1.5, 1.0], [1.0, -2.0]]))
    rows.thaw()
    with torch.no_grad():
        rows.threshold.fill_(1.0)
    assert rows.live == 2 and rows.order().tolist() == [2, 0, 1]
    wanted = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, -2.0]])
    assert torch.equal(rows.to_float(), wanted)
    assert rows.penalty().item() == pytest.approx(0.2 * math.exp(-1))
    rows.penalty().backward()
    assert rows.threshold.grad is not None and rows.threshold.grad < 0
    (group,) = rows.groups()
    assert group.kind == "sgd" and group.rate == 2.0
    rows.keep(1)
    wanted[0] = base
    assert torch.equal(rows.to_float(), wanted)


def test_widths_are_drawn_alike_in_every_step_and_for_every_bag() -> None:
    widths = DrawnWidths(torch.arange(DIM), torch.zeros(DIM), salt=1)
    drawn = []
    for step in range(50):
        widths.before_step(at(step))
        drawn.append(widths.widths(400))
    counts = torch.cat(drawn).bincount(minlength=DIM + 1)
    assert counts[0] == 0
    expected = 50 * 400 / DIM
    chi_square = float(((counts[1:] - expected) ** 2 / expected).sum())
    assert chi_square < DIM - 1 + 4 * math.sqrt(2 * (DIM - 1))
    widths.before_step(at(7))
    assert torch.equal(widths.widths(400), drawn[7])
    assert not torch.equal(drawn[7], drawn[8])
    other = DrawnWidths(torch.arange(DIM), torch.zeros(DIM), salt=2)
    other.before_step(at(7))
    assert not torch.equal(other.widths(400), drawn[7])
    assert widths.eval().widths(3).tolist() == [DIM] * 3


def test_a_bag_reads_the_first_columns_of_the_order_and_the_base_in_the_others() -> None:
    base = torch.tensor([1.0, 2.0, 3.0])
    widths = DrawnWidths(torch.tensor([2, 0, 1]), base, salt=0).eval()
    widths.width = 2
    codes, constant = torch.tensor([[10.0, 20.0, 30.0]]).repeat(2, 1), torch.tensor([[3.0], [0.0]])
    assert widths(codes, constant).tolist() == [[10, 6, 30], [10, 0, 30]]


GAINS = np.array([[0, 5, 6, 6.5], [0, 1, 5, 5.2], [0, 0.2, 0.3, 9], [0, 2, 2.5, 2.6]])
PRICES = np.array([3, 5, 2, 4])  # of a width of each field
MOST = 33.0


def gain(candidate: Candidate) -> float:
    return float(sum(GAINS[field, width] for field, width in enumerate(candidate)))


def cost(candidate: Candidate) -> float:
    return float(PRICES @ (np.array(candidate) + 1))


@pytest.mark.parametrize("seed", range(5))
def test_evolution_finds_the_best_of_all_candidates(seed: int) -> None:
    every = itertools.product(range(4), repeat=4)
    wanted = max((one for one in every if cost(one) <= MOST), key=gain)
    search = Evolution([4] * 4, gain, cost, MOST, np.random.default_rng(seed))
    found = search.best((0, 0, 0, 0))
    assert found.candidate == wanted and cost(found.candidate) <= MOST
    assert found.fitness == gain(found.candidate)


def test_evolution_never_ends_below_its_start_nor_above_the_cost() -> None:
    wanted = (2, 2, 2, 2)

    def fitness(candidate: Candidate) -> float:
        return float(candidate == wanted)

    measured: list[Candidate] = []

    def watched(candidate: Candidate) -> float:
        measured.append(candidate)
        return fitness(candidate)

    search = Evolution([9] * 4, watched, lambda c: float(sum(c)), 8, np.random.default_rng(0))
    assert search.best(wanted).candidate == wanted
    assert all(sum(candidate) <= 8 for candidate in measured)
    assert len(set(measured)) == len(measured)  # each is measured once


def test_one_field_alone_has_nothing_to_cross() -> None:
    search = Evolution([6], lambda c: float(c[0]), lambda c: c[0], 3, np.random.default_rng(0))
    assert search.best((0,)).candidate == (3,)


def score_of(tables: dict[str, SearchedTable]) -> float:
    """How near tables of the supernet are to their layers."""
    off = [
        (t.module.to_float().detach() - t.layer.weight).double().square().sum()
        for t in tables.values()
    ]
    return -float(sum(off))


def room_of(
    tables: dict[str, SearchedTable], bytes_of: Callable[[Any], float], most: float
) -> Room:
    return Room(bytes_of, most, knapsack=knapsack, score=lambda: score_of(tables), seed=0)


def test_settled_sizes_keep_to_the_bytes_and_what_was_measured_is_served() -> None:
    tables = {name: table(layer(name, seed)) for seed, name in enumerate("ab")}
    for one in tables.values():
        one.module.eval()

    def bytes_of(settings: dict[str, Settings]) -> float:
        return sum(
            module_bytes(optembed.empty(tables[n].layer.spec, settings[n])) for n in settings
        )

    most = bytes_of({name: one.settings for name, one in tables.items()})
    with torch.no_grad():
        for one in tables.values():
            optembed.cut(one, one.settings)
        before = score_of(tables)
        room = Room(
            bytes_of=bytes_of, most=most, knapsack=None, score=lambda: score_of(tables), seed=0
        )
        found = optembed.settle(tables, room)
    assert bytes_of(found) <= most
    assert score_of(tables) >= before
    for name, settings in found.items():
        searched = Layer(**{**vars(tables[name].layer), "searched": tables[name].module})
        served = optembed.compress(searched, settings)
        assert isinstance(served, CompressedTable)
        assert torch.allclose(served.to_float(), tables[name].module.to_float(), atol=1e-6)


def test_no_more_rows_stay_than_live() -> None:
    one = table(layer(), share=1.0, columns=4)
    with torch.no_grad():
        rows_of(one).threshold.fill_(3.0)
    live = rows_of(one).live
    assert 1 < live < ROWS
    room = Room(
        bytes_of=lambda _: 0.0, most=0.0, knapsack=None, score=lambda: score_of({"t": one}), seed=0
    )
    with torch.no_grad():
        found = optembed.settle({"t": one}, room)["t"]
    assert round(found.share * ROWS) == live and found.columns == 4


@pytest.mark.parametrize("dropped", ["mean", "zero"])
def test_the_largest_rows_and_columns_are_stored_and_the_rest_is_the_base(dropped: str) -> None:
    of = layer()
    served = optembed.compress(
        of, Settings(share=0.25, columns=2, storage="float32", dropped=dropped)
    )
    assert isinstance(served, CompressedTable) and of.counts is not None
    base = (of.counts[:, None] * of.weight).sum(0) / of.counts.sum()
    base = base.float() if dropped == "mean" else torch.zeros(DIM)
    sizes = (of.weight - base).abs().sum(1)
    kept = sizes >= sizes.sort(descending=True).values[9]
    wanted: Tensor = base.repeat(ROWS, 1)
    wanted[:, [1, 3]] = of.weight[:, [1, 3]].where(kept[:, None], wanted[:, [1, 3]])
    assert torch.allclose(served.to_float(), wanted, atol=1e-6)
    assert served.stored.rows == 11 and served.stored.width == 2


def test_columns_of_drawn_numbers_stay_in_their_order() -> None:
    assert widths_of(table(layer(drawn=True))).order.tolist() == [0, 1, 2, 3]
    assert widths_of(table(layer())).order.tolist() == [1, 3, 0, 2]
