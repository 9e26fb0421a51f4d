"""A plan's predicted time against the time that it takes: measured, and planned again on a miss.

The time of a call does not depend on what tuning does to the weights, so a plan is carried out and
timed as soon as it is made, in turns with the original in one process. Where it misses its latency
budget by more than what such a comparison is off by, predictions are taken to be as much too short
for the next plan as they were for this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from embedcomp.artifact.artifact import StandsAlone
from embedcomp.engine.arrays import as_array
from embedcomp.engine.prepare import made_up
from embedcomp.engine.standalone import Standalone
from embedcomp.errors import LimitsTooSmall
from embedcomp.kernels import clock
from embedcomp.kernels.clock import Call
from embedcomp.log.features import Features
from embedcomp.planning.latency import Timing
from embedcomp.planning.plan import Plan
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.storage.kind import CannotStore

ROUNDS = 3  # of planning and measuring
SECONDS, FEWEST = 1.5, 9  # measured of a plan and the original together, and turns
DIFFERENT = 8  # inputs, so that rows are not all in the cache


@dataclass(frozen=True)
class Measured:
    """Microseconds of a call of the original and of a plan.

    error: of their ratio, relative: half of what lies between its quartiles over the turns.
    """

    before: float
    after: float
    error: float

    @classmethod
    def of(cls, seconds: np.ndarray) -> Measured:
        """What turns measured: seconds [turns, 2] of the original and of the plan."""
        before, after = (clock.low(its) for its in seconds.T)
        low, middle, high = np.quantile(seconds[:, 1] / seconds[:, 0], (0.25, 0.5, 0.75))
        return cls(before, after, float((high - low) / (2 * middle)))


def calls(
    alone: Standalone, held: Mapping[str, Tensor], features: Features | None, rows: int
) -> list[Call]:
    """Calls of the compiled engine on one thread that score made-up rows, prepared already.

    Args:
        features: of the log that the model is for, where there is one.
    """
    runs = ByEngine(alone, {name: as_array(tensor) for name, tensor in held.items()}, 1, None)
    return [runs.call(made_up(alone, features, rows, seed), None) for seed in range(DIFFERENT)]


def measure(
    original: Sequence[Call], compressed: StandsAlone, features: Features | None, rows: int
) -> Measured:
    """The original and a model that a plan was carried out in, in turns."""
    contenders = [original, calls(compressed.standalone, compressed.held, features, rows)]
    return Measured.of(clock.in_turns(contenders, SECONDS, FEWEST))


def tried(
    make: Callable[[], Plan], measured: Callable[[Plan], Measured], timing: Timing
) -> list[Plan]:
    """Plans with their measured times; none but the last one keeps to the latency budget.

    Args:
        make: a plan by `timing`, whose predictions are corrected between two plans.

    Raises:
        LimitsTooSmall: there is no first plan.
    """
    found: list[Plan] = []
    for _ in range(ROUNDS):
        try:
            plan = make()
        except LimitsTooSmall:
            if not found:
                raise
            break
        try:
            times = measured(plan)
        except CannotStore:  # carrying the plan out raises it again
            return [*found, plan]
        plan = replace(
            plan,
            measured_microseconds=times.after,
            measured_microseconds_before=times.before,
            measured_error=times.error,
        )
        found.append(plan)
        if plan.in_time:
            break
        timing.slower = slower(plan, timing)
    return found


def best(plans: Sequence[Plan]) -> Plan:
    """The last plan where it keeps to its latency budget, else the one that is nearest to it."""
    if plans[-1].in_time:
        return plans[-1]
    return min(plans, key=lambda plan: plan.times_allowed or 0.0)


def slower(plan: Plan, timing: Timing) -> float:
    """How many times as long as predicted a plan takes, by what its budget is about."""
    assert plan.microseconds and plan.microseconds_before and plan.times_allowed
    predicted = timing.budget.share(plan.microseconds_before, plan.microseconds)
    return plan.times_allowed / predicted
