"""One choice a layer, of the smallest total loss within a number of bytes: exactly.

The multiple-choice knapsack, solved by dynamic programming over the layers: of all choices for the
first layers only those are kept that no other beats in both bytes and loss, and whose loss with the
best that the rest could do, in fractions of choices, does not exceed a whole solution that is known
already. That bound is close, so few are kept. An integer-programming solver does the same, but its
tolerances are absolute, and losses span ten orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from embedcomp.compress.choices import Choice, front

Options = Mapping[str, Sequence[Choice]]
Chosen = dict[str, Choice]

ROUNDING = 1e-9  # relative, of sums of losses


def solve(options: Options, limit: int) -> Chosen | None:
    """The choices with the smallest total loss in at most `limit` bytes; None if nothing fits."""
    kept = [front(found) for found in options.values()]
    rests = [_rest(kept[layer:]) for layer in range(len(kept) + 1)]
    if rests[0].sizes[0] > limit:
        return None
    states = _States(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64))
    steps, known = [], np.inf  # the smallest loss of a whole solution so far
    for found, rest in zip(kept, rests[1:], strict=True):
        states = _extended(states, found)
        room = limit - states.sizes
        states, room = _taken(states, room >= rest.sizes[0]), room[room >= rest.sizes[0]]
        known = min(known, float((states.losses + rest.whole(room)).min()))
        possible = states.losses + rest.fractional(room) <= known * (1 + ROUNDING)
        states = _undominated(_taken(states, possible))
        steps.append(states)
    return dict(zip(options, _traced(kept, steps), strict=True))


def total_bytes(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.bytes for choice in chosen.values())


def total_loss(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.loss for choice in chosen.values())


class _States(NamedTuple):
    """Choices for the first layers: their total bytes and loss, and where they come from."""

    sizes: np.ndarray  # int64 [n]
    losses: np.ndarray  # float64 [n]
    origins: np.ndarray  # int64 [n], state before * choices of the last layer + choice


def _extended(states: _States, found: Sequence[Choice]) -> _States:
    """Every state with every choice of the next layer."""
    sizes = np.add.outer(states.sizes, [choice.bytes for choice in found]).ravel()
    losses = np.add.outer(states.losses, [choice.loss for choice in found]).ravel()
    return _States(sizes, losses, np.arange(len(sizes)))


def _taken(states: _States, which: np.ndarray) -> _States:
    return _States(*(values[which] for values in states))


def _undominated(states: _States) -> _States:
    """The states that are better than every smaller one, by size."""
    states = _taken(states, np.lexsort((states.losses, states.sizes)))
    best = np.minimum.accumulate(states.losses)
    return _taken(states, np.concatenate([[True], states.losses[1:] < best[:-1]]))


def _traced(kept: Sequence[Sequence[Choice]], steps: Sequence[_States]) -> Iterable[Choice]:
    """The choices behind the last step's best state, first layer first."""
    place, chosen = -1, []
    for found, states in zip(reversed(kept), reversed(steps), strict=True):
        place, last = divmod(int(states.origins[place]), len(found))
        chosen.append(found[last])
    return reversed(chosen)


class _Rest(NamedTuple):
    """What the layers that are left can do: solutions of ever more bytes and less loss.

    Between two of them lies the best that fractions of choices could do.
    """

    sizes: np.ndarray  # float64 [n], rising
    losses: np.ndarray

    def whole(self, room: np.ndarray) -> np.ndarray:
        """Loss of the best of these solutions in so many bytes."""
        return self.losses[np.searchsorted(self.sizes, room, "right") - 1]

    def fractional(self, room: np.ndarray) -> np.ndarray:
        """A loss that no solution in so many bytes is below."""
        return np.interp(room, self.sizes, self.losses)


def _rest(kept: Sequence[Sequence[Choice]]) -> _Rest:
    """From the smallest choice of every layer upwards, the best loss a byte first."""
    steps = [step for found in kept for step in _hull_steps(found)]
    steps.sort(key=lambda step: step[1] / step[0])
    sizes, losses = np.array(steps, np.float64).reshape(-1, 2).T
    smallest, lowest = sum(c[0].bytes for c in kept), sum(c[-1].loss for c in kept)
    # losses are summed from the lowest up, since the largest would drown it
    rising = np.cumsum([lowest, *-losses[::-1]])
    return _Rest(np.cumsum([smallest, *sizes]), rising[::-1])


def _hull_steps(found: Sequence[Choice]) -> list[tuple[int, float]]:
    """Steps in bytes and loss along the lower convex hull of a layer's choices."""
    hull: list[Choice] = []
    for choice in found:
        while len(hull) > 1 and _slope(hull[-2], choice) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return [(b.bytes - a.bytes, b.loss - a.loss) for a, b in pairwise(hull)]


def _slope(a: Choice, b: Choice) -> float:
    return (b.loss - a.loss) / (b.bytes - a.bytes)
