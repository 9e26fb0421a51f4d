"""Few of many cases, in which everything that is said about them occurs."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations, product
from typing import Any

import pytest


def covering(said: Sequence[Collection[Hashable]]) -> set[int]:
    """Places of a few cases that together have all that is said about any of them.

    Greedily: the next one has the most that none before it had.
    """
    left = set().union(*said)
    found: set[int] = set()
    worth = [(-len(of), place) for place, of in enumerate(said)]
    heapify(worth)
    while left:
        before, place = heappop(worth)
        now = -len(left.intersection(said[place]))
        if now == before:
            found.add(place)
            left.difference_update(said[place])
        elif now:
            heappush(worth, (now, place))
    return found


def in_pairs(*, kernels: range, **axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test of the engine by all combinations of kernels and these values.

    `make test` runs all with the kernels of this CPU, which are the first, and with those of
    others as few as have every pair of values; the matrix has the rest.
    """
    values = {"kernels": kernels, **axes}
    said: list[set[Hashable]] = []
    for places in product(*(range(len(some)) for some in values.values())):
        whole = () if places[0] else (places,)
        said.append({*combinations(enumerate(places), 2), *whole})
    chosen = covering(said)
    cases = [
        pytest.param(*one, marks=[] if place in chosen else [pytest.mark.matrix])
        for place, one in enumerate(product(*values.values()))
    ]
    return pytest.mark.parametrize(list(values), cases, indirect=["kernels"])
