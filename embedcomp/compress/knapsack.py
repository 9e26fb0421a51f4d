"""One choice a layer, of the smallest total loss within a number of bytes: exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from embedcomp.compress.choices import Choice, front

Options = Mapping[str, Sequence[Choice]]
Chosen = dict[str, Choice]


def solve(options: Options, limit: int) -> Chosen | None:
    """The multiple-choice knapsack, by integer programming (HiGHS); None if nothing fits.

    The solver's tolerances are absolute, and losses span many orders of magnitude. So what is found
    is solved again at its own scale, without the choices that alone lose more.
    """
    kept = {name: front(found) for name, found in options.items()}
    chosen = {name: found[0] for name, found in kept.items()}
    if total_bytes(chosen) > limit:
        return None
    largest = sum(found[0].loss for found in kept.values())
    while largest > 0:
        kept = {n: [c for c in found if c.loss <= largest] for n, found in kept.items()}
        better = _solve_at(kept, limit, largest)
        if total_loss(better) >= total_loss(chosen):
            break
        chosen, largest = better, total_loss(better)
    return chosen


def total_bytes(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.bytes for choice in chosen.values())


def total_loss(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.loss for choice in chosen.values())


def _solve_at(options: Options, limit: int, scale: float) -> Chosen:
    """The knapsack with losses in units of `scale`; some choice of it fits."""
    flat = [(name, choice) for name, found in options.items() for choice in found]
    rows = {name: row for row, name in enumerate(options)}
    sizes = np.array([choice.bytes for _, choice in flat], dtype=np.float64)
    owner = csr_array(
        (np.ones(len(flat)), ([rows[name] for name, _ in flat], range(len(flat)))),
        shape=(len(options), len(flat)),
    )
    losses = np.array([choice.loss for _, choice in flat]) / scale
    allowed = limit
    while True:
        answer = milp(
            losses,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(owner, 1, 1),
                LinearConstraint(sizes[None] / limit, ub=allowed / limit),
            ],
            options={"mip_rel_gap": 0},
        )
        assert answer.success, answer.message
        chosen = dict(pair for pair, taken in zip(flat, answer.x, strict=True) if taken > 0.5)
        over = total_bytes(chosen) - limit
        if over <= 0:
            return chosen
        allowed -= over  # within the solver's tolerance of the limit, but not within the limit
