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
    """The knapsack with losses in units of `scale`; some choice of it fits.

    Bytes are counted beyond each layer's smallest choice, so that their sum is exact in a float.
    """
    smallest = {name: min(choice.bytes for choice in found) for name, found in options.items()}
    spare = limit - sum(smallest.values())
    flat = [
        (name, choice)
        for name, found in options.items()
        for choice in found
        if choice.bytes - smallest[name] <= spare
    ]
    rows = {name: row for row, name in enumerate(options)}
    owner = csr_array(
        (np.ones(len(flat)), ([rows[name] for name, _ in flat], range(len(flat)))),
        shape=(len(options), len(flat)),
    )
    extra = np.array([[choice.bytes - smallest[name] for name, choice in flat]], np.float64)
    losses = np.array([choice.loss for _, choice in flat]) / scale
    allowed = spare
    while True:
        answer = milp(
            losses,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(owner, 1, 1),
                LinearConstraint(extra / max(spare, 1), ub=allowed / max(spare, 1)),
            ],
            options={"mip_rel_gap": 0},
        )
        assert answer.success, answer.message
        chosen = dict(pair for pair, taken in zip(flat, answer.x, strict=True) if taken > 0.5)
        over = total_bytes(chosen) - limit
        if over <= 0:
            return chosen
        allowed -= over  # within the solver's tolerance of the limit, but not within the limit
