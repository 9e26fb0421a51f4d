"""Settings near those that a plan chose, as the numbers of a layer ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embedcomp.methods import frequency_tiers, trellis_coded
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning.choices import choices, empty_bytes
from embedcomp.planning.plan import Plan
from embedcomp.planning.planner import plan
from embedcomp.planning.search import LeastLoss, Search
from embedcomp.planning.solvers import exact
from embedcomp.sensitivity.layer import Layer, TableSpec, TableStatistics
from embedcomp.sensitivity.layers import Found
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.sensitivity.statistics import Statistics

ROWS, RANK = 1600, 4
FALLING = 5  # bits up to which each quarters what is left of a column, or nearly so
SPEC = TableSpec(name="t", rows=ROWS, dim=RANK, pooling="sum", counted=True, by_count=True)
SHAPES = [
    (trellis_coded, trellis_coded.Settings(rank=RANK, row_bits=(16, 13, 10, 7, 4))),
    (frequency_tiers, frequency_tiers.Settings(rank=RANK, row_bytes=(3, 2, 2, 1))),
]


def layer(counts: torch.Tensor, **changes: Any) -> Layer:
    weight = torch.randn(ROWS, RANK, generator=torch.manual_seed(3))
    gradient = torch.eye(RANK).double()
    spec = replace(SPEC, **changes)
    return Layer(spec, weight, None, TableStatistics(counts.double(), gradient))


def loss(method: Any, table: Layer, settings: Any) -> float:
    return predicted_loss(table, method.compress(table, settings))


@pytest.mark.parametrize(("method", "settings"), SHAPES)
@pytest.mark.parametrize("index", [None, "ranked"])
def test_tiers_follow_the_counts(method: Any, settings: Any, index: Any) -> None:
    """In as many bytes the loss is smaller than of tiers whose bits fall evenly."""
    counts = 1e6 / (1 + torch.arange(ROWS)) ** 2
    if index is not None:  # rows in any order, of fewer tiers
        order = torch.randperm(ROWS, generator=torch.manual_seed(0))
        unit = "row_bits" if method is trellis_coded else "row_bytes"
        settings = replace(settings, index=index, **{unit: getattr(settings, unit)[:4]})
        counts = counts[order]
    table = layer(counts, by_count=index is None)
    found = method.nearby(table, settings)
    name = method.__name__.rpartition(".")[2]
    size = empty_bytes(name, SPEC, settings)
    within = [one for one in found if empty_bytes(name, SPEC, one) <= size]
    best = min(loss(method, table, one) for one in within)
    assert best < 0.8 * loss(method, table, settings)
    assert {(one.rank, one.index, one.weighting) for one in found} == {
        (settings.rank, settings.index, settings.weighting)
    }


def test_an_error_that_counts_sixteen_times_is_worth_two_bits_more() -> None:
    """As reverse water-filling has it: every bit more quarters an error, or nearly so."""
    counts = torch.cat([torch.full((n,), c) for n, c in ((200, 256.0), (200, 16.0), (1200, 1.0))])
    settings = trellis_coded.Settings(rank=RANK, row_bits=(20, 12, 6, 4, 4))
    found = trellis_coded.nearby(layer(counts), settings)
    coded = [one for one in found if max(one.row_bits) <= RANK * FALLING]
    assert coded
    for one in coded:
        first, second, *others = one.row_bits
        assert abs(first - second - 2 * RANK) <= 2, one
        assert max(others) - min(others) <= 2, one
        assert abs(second - np.mean(others) - 2 * RANK) <= 2, one


def test_columns_count_as_the_loss_feels_them() -> None:
    """What rare rows spread in a column that hardly matters is worth no bits of theirs."""
    table = layer(torch.ones(ROWS))
    rare = torch.arange(ROWS) >= ROWS // 2
    table.weight[:, 1:] *= rare[:, None]
    table.weight[:, 0] *= ~rare
    felt = torch.tensor([1e4, 1.0, 1.0, 1.0]).diag().double()
    table = replace(table, statistics=replace(table.statistics, gradient=felt))
    settings = trellis_coded.Settings(rank=RANK, row_bits=(4, 4, 4, 0, 0))
    assert all(one.row_bits[3:] == (0, 0) for one in trellis_coded.nearby(table, settings))


@pytest.mark.parametrize(("method", "settings"), SHAPES)
def test_what_a_spec_offers_is_no_larger_and_better_once_it_suits_the_layer(
    method: Any, settings: Any
) -> None:
    table = layer(1e6 / (1 + torch.arange(ROWS)) ** 2)
    (suited,) = method.suited(table, [settings])
    name = method.__name__.rpartition(".")[2]
    assert empty_bytes(name, SPEC, suited) <= empty_bytes(name, SPEC, settings)
    assert loss(method, table, suited) < 0.8 * loss(method, table, settings)
    assert method.suited(table, [suited, settings]) == [suited]


@pytest.mark.slow
def test_choices_are_of_what_suits_the_layer() -> None:
    table = layer(1e6 / (1 + torch.arange(ROWS)) ** 2)
    wanted = trellis_coded.candidates(SPEC)
    found = {choice.settings for choice in choices(table, ["trellis_coded"])}
    assert found == {*trellis_coded.suited(table, wanted)} and not found & {*wanted}


@pytest.mark.slow
def test_rows_in_any_order_have_a_tier_of_few_rows_where_those_are_most_of_the_look_ups() -> None:
    order = torch.randperm(ROWS, generator=torch.manual_seed(0))
    for steepness, tiers in ((3, 3), (0.3, 2)):
        counts = 1e6 / (1 + torch.arange(ROWS)) ** steepness
        found = choices(layer(counts[order], by_count=False), ["trellis_coded"])
        best = min((c for c in found if c.bytes < 900), key=lambda choice: choice.loss)
        assert len(best.settings.row_bits) == tiers


def test_small_tables_have_no_tiers_of_few_rows() -> None:
    shortest = {len(one.row_bits) for one in trellis_coded.candidates(replace(SPEC, rows=1023))}
    longer = {len(one.row_bits) for one in trellis_coded.candidates(replace(SPEC, rows=1024))}
    assert (shortest, longer) == ({5}, {5, 8})
    assert not trellis_coded.candidates(replace(SPEC, rows=63))


def test_sizes_are_near_and_finer_the_nearer() -> None:
    settings = SHAPES[0][1]
    found = trellis_coded.nearby(layer(torch.arange(ROWS, 0, -1)), settings)
    size = empty_bytes("trellis_coded", SPEC, settings)
    ratios = [empty_bytes("trellis_coded", SPEC, one) / size for one in found]
    assert ratios == sorted(ratios) and 0.65 < ratios[0] < 0.8 and 1.2 < ratios[-1] < 1.4
    steps = np.diff(ratios)
    assert steps.min() < 0.03 and steps.max() > 0.08


def test_tiers_that_nobody_looks_up_get_nothing_more() -> None:
    counts = torch.arange(ROWS, 0, -1).clamp_min(ROWS // 2) - ROWS // 2
    for method, settings in SHAPES:
        for one in method.nearby(layer(counts), settings):
            assert (one.row_bits if method is trellis_coded else one.row_bytes)[-1] == 0


@pytest.mark.slow
def test_a_plan_is_better_by_what_lies_near(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"t": 1e6 / (1 + torch.arange(ROWS)) ** 2, "u": 1e3 / (1 + torch.arange(ROWS))}
    layers = {name: layer(counts, name=name) for name, counts in tables.items()}
    model = nn.ModuleDict({name: nn.EmbeddingBag(ROWS, RANK, mode="sum") for name in tables})
    known = model, Found(layers, {}), Statistics()

    def planned() -> Plan:
        return plan(*known, model_bytes(model)["total"] // 16, ["trellis_coded"])

    fine = planned()
    monkeypatch.delattr(trellis_coded, "nearby")
    coarse = planned()
    assert fine.bytes_after <= fine.budget_bytes and fine.loss < 0.98 * coarse.loss
    monkeypatch.delattr(trellis_coded, "suited")
    assert coarse.loss < 0.8 * planned().loss
    made = {p.layer: loss(trellis_coded, layers[p.layer], p.typed_settings) for p in fine.layers}
    assert made == {p.layer: p.loss for p in fine.layers}


@pytest.mark.slow
def test_a_plan_beside_what_tables_share_is_better_by_what_lies_near_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, goal = layer(1e6 / (1 + torch.arange(ROWS)) ** 2), LeastLoss(1100)

    def loss_near() -> float:
        search = Search({"t": table}, ["trellis_coded"], {}, set(), exact, (), {})
        found = search.near({}, goal)
        assert found is not None and goal.reached(found)
        return goal.objective(found)

    fine = loss_near()
    monkeypatch.delattr(trellis_coded, "nearby")
    assert fine < 0.8 * loss_near()
