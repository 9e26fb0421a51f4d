"""The smallest plan whose loss of AUC stays within a bound where it is measured.

Predicted losses are of second order and add up over layers, so they end somewhere: a plan that is
predicted to keep to a bound may not, and one that is predicted to break it may keep to it. So plans
are carried out and measured, and the predicted loss that a plan may have is moved until the largest
one is bracketed whose plan holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from embedcomp.planning.plan import Plan

SURE = 1.645  # standard errors above a measured loss that still have to be within the bound: a
# loss that is larger than the bound is measured as small as this one with a chance of 5 % at most
ROUNDS = 10  # of planning, carrying out and measuring
STEP = 8.0  # from one predicted loss to the next at most, while the bound is not bracketed
CLOSE = 1.2  # of the smallest predicted loss that failed to the largest one that held


def worst(measured: Plan) -> float:
    """Upper end of a measured loss of AUC."""
    assert measured.outcome is not None
    return measured.outcome.auc_loss + SURE * measured.outcome.auc_error


def smallest_within(
    bound: float,
    first: float,
    plan: Callable[[float], Plan],
    measured: Callable[[Plan], Plan],
    unchanged: Callable[[], Plan],
) -> Plan:
    """The smallest plan that was found to keep to the bound.

    Args:
        bound: of the decrease of the AUC, which a plan's `worst` has to be within.
        first: predicted increase of the log loss to begin with.
        plan: makes the smallest plan within a predicted increase of the log loss.
        measured: carries a plan out and gives it with its outcome.
        unchanged: makes the plan that keeps every layer, for where no other one keeps to the bound.
    """
    bracket, tried = _Bracket(bound, first), list[Plan]()
    for _ in range(ROUNDS):
        planned = plan(bracket.next)
        known = [one for one in tried if one.layers == planned.layers]
        found = known[0] if known else measured(planned)
        bracket.see(worst(found))
        tried.append(found)
        if bracket.is_close or (known and bracket.failed == math.inf):  # there is none smaller
            break
    held = [one for one in tried if worst(one) <= bound]
    return min(held, key=lambda one: one.bytes_after) if held else measured(unchanged())


@dataclass
class _Bracket:
    """Predicted losses, the largest whose plan held and the smallest whose plan did not."""

    bound: float
    next: float  # to be tried
    held: float = 0.0
    failed: float = math.inf

    @property
    def is_close(self) -> bool:
        return self.failed <= CLOSE * self.held

    def see(self, worst: float) -> None:
        """Take in what the plan of the predicted loss to be tried did, and choose the next one.

        Measured losses grow about as predicted ones do, so the first steps are proportional.
        """
        if worst <= self.bound:
            self.held = max(self.held, self.next)
        else:
            self.failed = min(self.failed, self.next)
        if self.held and self.failed < math.inf:
            self.next = math.sqrt(self.held * self.failed)
        elif self.held:
            self.next *= min(max(self.bound / max(worst, self.bound / STEP), 2.0), STEP)
        else:
            self.next *= min(max(self.bound / worst, 1 / STEP), 0.5)
