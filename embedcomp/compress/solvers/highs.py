"""The integer programme, solved by HiGHS through scipy.

min values @ x with one choice a layer and costs @ x <= limit, x in {0, 1}: LQ-LoRA's programme
(arXiv 2311.12023). HiGHS's tolerances are absolute (1e-6), and the losses of good choices are
smaller; so values and costs are scaled until those of a good solution are a million. The optimum is
that of `exact` to about nine digits. Layers that are much alike can take it hours to prove; after a
minute it gives the best that it has found, and a warning.
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

from embedcomp.compress.choices import Chosen
from embedcomp.compress.fronts import ROUNDING, Front, Options, by_bytes, by_loss, named
from embedcomp.compress.solvers import greedy

SCALE = 1e6  # of the value of a good solution and of the limit
SECONDS = 60.0  # after which it stops
STOPPED = 1  # its status then

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
        found = _programme(fronts, room, value)
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


def _programme(fronts: Sequence[Front], limit: float, value: float) -> list[int] | None:
    """Places of the best choices; None if none are within the limit.

    Args:
        value: of a good solution.
    """
    sizes = [len(front) for front in fronts]
    ends = np.cumsum(sizes)
    layers = np.repeat(np.arange(len(fronts)), sizes)
    one_each = csr_array((np.ones(ends[-1]), (layers, np.arange(ends[-1]))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    if 0 < limit < np.inf:
        costs = np.concatenate([front.costs for front in fronts]) * (SCALE / limit)
        constraints.append(LinearConstraint(csr_array(costs[None]), -np.inf, SCALE))
    with _stdout_to_stderr():
        found = milp(
            np.concatenate([front.values for front in fronts]) * (SCALE / value),
            integrality=np.ones(ends[-1]),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
        )
    if found.x is None:
        return None
    if found.status == STOPPED:
        log.warning("HiGHS was stopped after %g s, %.1e from its bound", SECONDS, found.mip_gap)
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
