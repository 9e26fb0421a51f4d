"""The integer programme, solved by HiGHS through scipy.

min values @ x with one choice a layer and costs @ x <= limit, x in {0, 1}: LQ-LoRA's programme
(arXiv 2311.12023). HiGHS's tolerances are absolute (1e-6), and the losses of good choices are
smaller; so values and costs are scaled until those of a good solution are a million. The optimum is
that of `exact` to about nine digits. Layers that are much alike can take it hours to prove; after a
minute it gives the best that it has found, and a warning.

It also solves what `exact` does not: limits of both bytes and time.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from embedcomp.planning.choices import Choice, Chosen
from embedcomp.planning.fronts import (
    ROUNDING,
    Front,
    Options,
    by_bytes,
    by_loss,
    named,
)
from embedcomp.planning.solvers import greedy

SCALE = 1e6  # of the value of a good solution and of the limit
SECONDS = 60.0  # after which it stops
STOPPED = 1  # its status then
GAP = 1e-4  # relative, of a plan with two limits; losses are predicted no better
SECONDS_IN_BOTH = 10.0

log = logging.getLogger(__name__)


def least_loss(options: Options, most_bytes: float) -> Chosen | None:
    return _solved(options, by_bytes(options), most_bytes)


def least_bytes(options: Options, most_loss: float) -> Chosen | None:
    return _solved(options, by_loss(options), most_loss * (1 + ROUNDING))


def _solved(options: Options, fronts: Sequence[Front], limit: float) -> Chosen | None:
    known = greedy.bought(fronts, limit)
    if known is None:
        return None
    fronts = [front.taken(front.costs <= limit) for front in fronts]
    value, room = _total([f.values for f in fronts], known), limit
    while value > 0:  # 0: nothing is better
        found = _programme([f.values for f in fronts], [[f.costs for f in fronts]], [room], value)
        if found is None:
            break
        over = _total([f.costs for f in fronts], found) - limit
        if over <= 0:
            better = _total([f.values for f in fronts], found) < value
            return named(options, fronts, found if better else known)
        room -= over  # what HiGHS takes for within the limit can be above it by its tolerance
    return named(options, fronts, known)


def _total(columns: Sequence[np.ndarray], places: Sequence[int]) -> float:
    return sum(float(column[place]) for column, place in zip(columns, places, strict=True))


def least_loss_in_both(
    options: Options, most_bytes: float, most_nanoseconds: float, good: float
) -> Chosen | None:
    """The smallest loss within bytes and within a time; None if nothing is within both.

    Args:
        good: about the loss of a good solution.
    """
    menus = [_undominated(menu) for menu in options.values()]
    times = _costs(menus, "nanoseconds")
    least = [float(column.min()) for column in times]  # what a table saves others can make it < 0
    costs = [
        _costs(menus, "bytes"),
        [column - low for column, low in zip(times, least, strict=True)],
    ]
    limits = [most_bytes, most_nanoseconds - sum(least)]
    losses, rooms = _costs(menus, "loss"), list(limits)
    while min(rooms) > 0:
        places = _programme(losses, costs, rooms, good or 1.0, GAP, SECONDS_IN_BOTH)
        if places is None:
            return None
        over = [_total(of, places) - limit for of, limit in zip(costs, limits, strict=True)]
        if max(over) <= 0:
            return {n: m[p] for n, m, p in zip(options, menus, places, strict=True)}
        rooms = [room - max(more, 0) for room, more in zip(rooms, over, strict=True)]
    return None


def _undominated(menu: Sequence[Choice]) -> list[Choice]:
    """The choices that no other beats in bytes, time and loss together."""
    kept: list[Choice] = []
    for choice in sorted(menu, key=lambda c: (c.loss, c.bytes, c.nanoseconds)):
        if all(choice.bytes < k.bytes or choice.nanoseconds < k.nanoseconds for k in kept):
            kept.append(choice)
    return kept


def _costs(menus: Sequence[Sequence[Choice]], of: str) -> list[np.ndarray]:
    return [np.array([getattr(choice, of) for choice in menu], np.float64) for menu in menus]


def _programme(
    values: Sequence[np.ndarray],
    costs: Sequence[Sequence[np.ndarray]],
    limits: Sequence[float],
    value: float,
    gap: float = 0.0,
    seconds: float = SECONDS,
) -> list[int] | None:
    """Places of the best choices; None if none are within the limits.

    Args:
        values: float64 [choices] of each layer.
        costs: the same by limit.
        value: of a good solution.
        gap: how much worse than the best, relatively, a solution may be.
    """
    sizes = [len(column) for column in values]
    ends = np.cumsum(sizes)
    layers = np.repeat(np.arange(len(values)), sizes)
    one_each = csr_array((np.ones(ends[-1]), (layers, np.arange(ends[-1]))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for of, limit in zip(costs, limits, strict=True):
        if 0 < limit < np.inf:
            scaled = np.concatenate(of) * (SCALE / limit)
            constraints.append(LinearConstraint(csr_array(scaled[None]), -np.inf, SCALE))
    with _stdout_to_stderr():
        found = milp(
            np.concatenate(values) * (SCALE / value),
            integrality=np.ones(ends[-1]),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": gap, "time_limit": seconds},
        )
    if found.x is None:
        return None
    if found.status == STOPPED:
        log.warning("HiGHS was stopped after %g s, %.1e from its bound", seconds, found.mip_gap)
    return [int(part.argmax()) for part in np.split(found.x, ends[:-1])]


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """HiGHS prints a line to the process's standard output from C++, whatever its options say."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        libc.fflush(None)  # while it still goes to standard error
        os.dup2(kept, 1)
        os.close(kept)
