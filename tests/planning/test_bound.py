"""The search for the smallest plan whose measured loss of AUC keeps to a bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedcomp.planning.bound import (
    ROUNDS,
    SURE,
    smallest_within,
    worst,
)
from embedcomp.planning.plan import Outcome, Plan, Planned

BOUND = 1e-3
KEPT = Plan(
    budget_bytes=10**6,
    bytes_before=10**6,
    bytes_after=10**6,
    layers=(),
    untouched={},
    single_valued=(),
)


class World:
    """A model whose plans are as small as the predicted loss allows, and lose what `true` says."""

    def __init__(self, true, error=0.0, smallest=1):
        self.true, self.error, self.smallest = true, error, smallest
        self.planned, self.measured = [], []

    def plan(self, loss):
        self.planned.append(loss)
        size = max(int(1e6 * (1e-8 / max(loss, 1e-12)) ** 0.25), self.smallest)
        layer = Planned(
            layer="a",
            kind="table",
            shape=(1, 1),
            method="svd",
            settings={"bytes": size},
            bytes_before=10**6,
            bytes_after=size,
            loss=loss if size > self.smallest else 1.0,
        )
        return Plan(
            budget_bytes=size,
            bytes_before=10**6,
            bytes_after=size,
            layers=(layer,),
            untouched={},
            single_valued=(),
        )

    def carry_out(self, plan):
        self.measured.append(plan)
        loss = self.true(plan.loss)
        return replace(
            plan, outcome=Outcome(rows=9, where="valid", auc_loss=loss, auc_error=self.error)
        )

    def find(self, first=1e-3):
        return smallest_within(BOUND, first, self.plan, self.carry_out, lambda: KEPT)


@pytest.mark.parametrize("times", [0.01, 0.3, 1.0, 8.0, 300.0])
def test_the_bound_holds_and_is_used_whatever_the_prediction_is_off_by(times):
    found = World(lambda loss: times * loss).find()
    assert BOUND / 1.3 <= worst(found) <= BOUND


def test_a_loss_that_jumps_is_stayed_below():
    world = World(lambda loss: 0.1 * loss if loss < 4e-4 else 1.0)
    found = world.find()
    assert 4e-4 / 1.3 <= found.layers[0].loss < 4e-4


def test_the_error_of_the_measurement_is_kept_off_the_bound():
    exact, rough = World(lambda loss: loss), World(lambda loss: loss, error=4e-4)
    smallest, larger = exact.find(), rough.find()
    assert worst(larger) == pytest.approx(larger.outcome.auc_loss + SURE * 4e-4)
    assert larger.outcome.auc_loss <= BOUND - SURE * 4e-4 < smallest.outcome.auc_loss


def test_nothing_is_found_where_nothing_holds():
    world = World(lambda loss: 1.0)
    assert world.find().layers == ()
    assert len(world.measured) == ROUNDS + 1 and min(world.planned) < 1e-6


def test_the_smallest_plan_that_there_is_ends_the_search():
    world = World(lambda loss: 0.0, smallest=10_000)
    found = world.find()
    assert found.bytes_after == 10_000
    assert len(world.planned) < ROUNDS


def test_the_same_choices_are_not_measured_twice():
    world = World(lambda loss: 1e-5 if loss < 1 else 1.0, smallest=900_000)
    world.find(first=1e-9)
    sizes = [plan.bytes_after for plan in world.measured]
    assert len(sizes) == len(set(sizes))


def test_a_better_model_is_no_loss():
    found = World(lambda loss: -1e-4, smallest=5).find()
    assert np.isclose(worst(found), -1e-4)
