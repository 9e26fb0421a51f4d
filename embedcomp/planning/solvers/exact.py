"""One choice a layer, of the smallest total loss within a number of bytes, or the reverse: exactly.

The multiple-choice knapsack. A relaxation by one multiplier (Lagrange) says how much a choice costs
at least beyond what is best; what exceeds the gap to the greedy solution is left out, which most
choices do. The rest is dynamic programming over the layers: of all choices for the first layers
only those are kept that no other beats in both bytes and loss, and whose value with the best that
the rest could do, in fractions of choices, does not exceed a whole solution that is known already.
An integer-programming solver does the same, but its tolerances are absolute, and losses span ten
orders of magnitude.

Sources: Sinha and Zoltners (1979), Pisinger (1995), A minimal algorithm for the multiple-choice
knapsack problem. The least bytes under a bound on the loss are what L-GreCo's dynamic programme
(arXiv 2210.17357) finds over rounded losses; here losses are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from embedcomp.planning.choices import Chosen
from embedcomp.planning.fronts import (
    ROUNDING,
    Front,
    Options,
    Steps,
    by_bytes,
    by_loss,
    named,
    steps,
)
from embedcomp.planning.solvers import greedy


def least_loss(options: Options, most_bytes: float) -> Chosen | None:
    """The choices with the smallest total loss in at most `most_bytes`; None if nothing fits."""
    return _solved(options, by_bytes(options), most_bytes)


def least_bytes(options: Options, most_loss: float) -> Chosen | None:
    """The fewest bytes with a total loss of at most `most_loss`, within rounding of the sum."""
    return _solved(options, by_loss(options), most_loss * (1 + ROUNDING))


def _solved(options: Options, fronts: list[Front], limit: float) -> Chosen | None:
    known = greedy.bought(fronts, limit)
    if known is None:
        return None
    price = _price(fronts, limit)
    order = sorted(range(len(fronts)), key=lambda layer: -_jump(fronts[layer], price))
    ordered = [fronts[layer] for layer in order]
    programme = _Programme(ordered, limit, [known[layer] for layer in order])
    programme.run(price)
    places = dict(zip(order, programme.places, strict=True))
    return named(options, fronts, [places[layer] for layer in range(len(fronts))])


def _price(fronts: Sequence[Front], limit: float) -> float:
    """Value that a unit of the cost is worth where the limit ends; 0 where nothing is too dear."""
    found = steps(fronts)
    spent = sum(float(front.costs[0]) for front in fronts) + np.cumsum(found.costs)
    first = int(np.searchsorted(spent, limit, "right"))
    return float(-found.values[first] / found.costs[first]) if first < len(spent) else 0.0


def _excess(front: Front, price: float) -> np.ndarray:
    """How much worse each choice is than the best one, where its cost has this price."""
    priced = front.values + price * front.costs
    return priced - priced.min()


def _jump(front: Front, price: float) -> float:
    """How far the costs of the two best choices are apart at this price."""
    best = np.argsort(_excess(front, price), kind="stable")[:2]
    return float(np.ptp(front.costs[best]))


class _States(NamedTuple):
    """Choices for the first layers: their total cost and value, and where they come from."""

    costs: np.ndarray  # float64 [n]
    values: np.ndarray  # float64 [n]
    origins: np.ndarray  # int64 [n], state before * choices of the last layer + choice

    @classmethod
    def first(cls) -> _States:
        return cls(np.zeros(1), np.zeros(1), np.zeros(1, np.int64))

    def extended(self, costs: np.ndarray, values: np.ndarray) -> _States:
        """Every state with every choice of the next layer."""
        costs = np.add.outer(self.costs, costs).ravel()
        values = np.add.outer(self.values, values).ravel()
        return _States(costs, values, np.arange(len(costs)))

    def taken(self, which: np.ndarray) -> _States:
        return _States(*(column[which] for column in self))

    def undominated(self) -> _States:
        """The states that are better than every cheaper one, by cost."""
        if not len(self.costs):
            return self
        states = self.taken(np.lexsort((self.values, self.costs)))
        best = np.minimum.accumulate(states.values)
        return states.taken(np.concatenate([[True], states.values[1:] < best[:-1]]))


class _Programme:
    """The dynamic programme.

    Args:
        fronts: of the layers, those first whose costs jump most from one good choice to the next.
            With the small steps left for last, what fractions of choices could do is close to what
            whole ones can, and few states are followed.
        places: of the choices of a solution; what is not clearly better than the best one so far
            is not followed.
    """

    def __init__(self, fronts: Sequence[Front], limit: float, places: list[int]):
        self.fronts, self.limit, self.places = fronts, limit, places
        self.value = sum(float(f.values[p]) for f, p in zip(fronts, places, strict=True))
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []  # origins of each layer's states, and
        # the places of the choices that were tried

    def run(self, price: float) -> None:
        """Find the places of the best choices.

        Args:
            price: of a unit of the cost. A solution within the limit has a value of at least
                sum(value + price * cost) - price * limit, so that a choice whose excess is larger
                than the gap to that is in no better solution.
        """
        states, bound = _States.first(), self._bound(price)
        for front, rest in zip(self.fronts, _rests(self.fronts), strict=True):
            excess, gap = _excess(front, price), self.value * (1 - ROUNDING) - bound
            if not len(states.costs):
                break  # nothing is clearly better than what is known
            states = self._next(states, front, np.flatnonzero(excess <= gap), rest)

    def _bound(self, price: float) -> float:
        lowest = sum(float((f.values + price * f.costs).min()) for f in self.fronts)
        return lowest - price * self.limit if price else lowest

    def _next(self, states: _States, front: Front, tried: np.ndarray, rest: _Rest) -> _States:
        """The states of one more layer that may become better than the best solution."""
        states = states.extended(front.costs[tried], front.values[tried])
        states = states.taken(self.limit - states.costs >= rest.costs[0])
        room = self.limit - states.costs
        completed = states.values + rest.whole(room)
        if len(completed) and completed.min() < self.value:
            best = int(completed.argmin())
            begun = self._traced(states.origins[best], tried)
            self.value = float(completed[best])
            self.places = begun + rest.places(room[best], len(begun), len(self.fronts))
        possible = states.values + rest.fractional(room) < self.value * (1 - ROUNDING)
        states = states.taken(possible).undominated()
        self._steps.append((states.origins, tried))
        return states

    def _traced(self, origin: int, tried: np.ndarray) -> list[int]:
        """Places of the choices behind a state of the next layer, first layer first."""
        places = []
        for origins, before in reversed(self._steps):
            state, choice = divmod(int(origin), len(tried))
            places.append(int(tried[choice]))
            origin, tried = origins[state], before
        return [int(tried[int(origin) % len(tried)]), *reversed(places)]


class _Rest(NamedTuple):
    """What the layers that are left can do: solutions of ever more cost and less value.

    Between two of them lies the best that fractions of choices could do.
    """

    costs: np.ndarray  # float64 [n], rising
    values: np.ndarray  # float64 [n]
    steps: Steps  # [n - 1], from one to the next

    def whole(self, room: np.ndarray) -> np.ndarray:
        """Value of the best of these solutions in so much room."""
        return self.values[np.searchsorted(self.costs, room, "right") - 1]

    def places(self, room: float, begin: int, end: int) -> list[int]:
        """The choices of that solution for the layers from `begin` to `end`."""
        taken = int(np.searchsorted(self.costs, room, "right")) - 1
        places = np.zeros(end, np.int64)
        np.maximum.at(places, self.steps.layers[:taken], self.steps.places[:taken])
        return places[begin:].tolist()

    def fractional(self, room: np.ndarray) -> np.ndarray:
        """A value that no solution in so much room is below."""
        return np.interp(room, self.costs, self.values)


def _rests(fronts: Sequence[Front]) -> Iterator[_Rest]:
    """What is left after the first layer, after the second, and so on."""
    found = steps(fronts)
    cheapest = _sums_after([float(front.costs[0]) for front in fronts])
    lowest = _sums_after([float(front.values[-1]) for front in fronts])
    for layer in range(len(fronts)):
        found = found.taken(found.layers > layer)
        # values are summed from the lowest up, since the largest would drown it
        rising = np.cumsum([lowest[layer], *-found.values[::-1]])
        yield _Rest(np.cumsum([cheapest[layer], *found.costs]), rising[::-1], found)


def _sums_after(numbers: Sequence[float]) -> np.ndarray:
    """For each place the sum of the numbers after it."""
    return np.cumsum([0.0, *reversed(numbers)])[-2::-1]
