"""A layer's choices by what they cost and what they are worth, and the order to buy them in.

Under a byte budget bytes are the cost and the loss is to be small; under a bound on the loss it is
the other way round. What solves the one solves the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from embedcomp.planning.choices import Choice, Chosen, front

ROUNDING = 1e-9  # relative, of sums of losses

Options = Mapping[str, Sequence[Choice]]  # what can be done with each layer


@dataclass(frozen=True)
class Front:
    """A layer's choices that no other one beats: the more one costs, the smaller its value.

    costs: float64 [n], rising, of which there is a limit.
    values: float64 [n], falling, which are to be small.
    """

    costs: np.ndarray
    values: np.ndarray
    choices: tuple[Choice, ...]

    def __len__(self) -> int:
        return len(self.choices)

    def taken(self, which: np.ndarray) -> Front:
        """Those choices, by a mask."""
        chosen = tuple(c for c, kept in zip(self.choices, which, strict=True) if kept)
        return Front(self.costs[which], self.values[which], chosen)


def by_bytes(options: Options) -> list[Front]:
    """Bytes are limited, losses are to be small; integers below 2^53 are exact in float64."""
    return [_front(front(found), "bytes", "loss") for found in options.values()]


def by_loss(options: Options) -> list[Front]:
    """Losses are limited, bytes are to be few."""
    return [_front(front(found)[::-1], "loss", "bytes") for found in options.values()]


def _front(kept: Sequence[Choice], cost: str, value: str) -> Front:
    costs = np.array([getattr(choice, cost) for choice in kept], np.float64)
    values = np.array([getattr(choice, value) for choice in kept], np.float64)
    return Front(costs, values, tuple(kept))


def named(options: Options, fronts: Iterable[Front], places: Iterable[int]) -> Chosen:
    """The choices at these places of the fronts, by layer."""
    picked = (front.choices[place] for front, place in zip(fronts, places, strict=True))
    return dict(zip(options, picked, strict=True))


class Steps(NamedTuple):
    """Steps along the lower convex hulls of the layers' fronts, the best value for a cost first.

    From the cheapest choice of every layer on, each prefix of them is the best that can be had for
    its cost; between two prefixes lies the best that fractions of choices could do.
    """

    costs: np.ndarray  # float64 [n], positive
    values: np.ndarray  # float64 [n], negative
    layers: np.ndarray  # int64 [n]
    places: np.ndarray  # int64 [n], of the choice that the step leads to

    def taken(self, which: np.ndarray) -> Steps:
        return Steps(*(column[which] for column in self))


def steps(fronts: Sequence[Front]) -> Steps:
    """The steps of all layers, sorted."""
    found = [
        (front.costs[b] - front.costs[a], front.values[b] - front.values[a], layer, b)
        for layer, front in enumerate(fronts)
        for a, b in pairwise(hull(front))
    ]
    costs, values, layers, places = np.array(found, np.float64).reshape(-1, 4).T
    unsorted = Steps(costs, values, layers.astype(np.int64), places.astype(np.int64))
    return unsorted.taken(np.argsort(values / costs, kind="stable"))


def hull(front: Front) -> list[int]:
    """Places of the choices on the lower convex hull of a front."""
    points = list(zip(front.costs.tolist(), front.values.tolist(), strict=True))
    kept: list[int] = []
    for place, point in enumerate(points):
        while len(kept) > 1 and _slope(points[kept[-2]], point) <= _slope(
            points[kept[-2]], points[kept[-1]]
        ):
            kept.pop()
        kept.append(place)
    return kept


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
