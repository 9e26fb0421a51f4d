"""Ranks by one threshold for all layers: what the baselines share that go by spectra, not losses.

A heuristic says below which level of the threshold a layer needs more than k ranks. As the
threshold falls, layers get more of them, and where a method offers no more, the whole layer. Ranks
are those of one method in one storage for all layers; of the plans that methods and storages give,
the best by predicted loss or bytes is taken, which is all that losses are read for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from embedcomp.errors import BadSettings
from embedcomp.planning.choices import (
    Choice,
    Chosen,
    Menu,
    total_bytes,
    total_loss,
)
from embedcomp.planning.fronts import ROUNDING

Options = Mapping[str, Menu]
Levels = Mapping[str, np.ndarray]  # by layer, [r], falling: more than k ranks are needed below [k]


def least_loss(options: Options, levels: Levels, most_bytes: float) -> Chosen | None:
    """At the lowest threshold at which the layers are within `most_bytes`."""
    found = [
        ladder.at(int(np.searchsorted(ladder.bytes, most_bytes, "right")) - 1)
        for ladder in _ladders(options, levels)
        if ladder.bytes[0] <= most_bytes
    ]
    return min(found, key=total_loss, default=None)


def least_bytes(options: Options, levels: Levels, most_loss: float) -> Chosen | None:
    """At the highest threshold at which the loss is at most `most_loss`."""
    limit = most_loss * (1 + ROUNDING)
    found = [
        ladder.at(int(np.argmax(ladder.losses <= limit)))
        for ladder in _ladders(options, levels)
        if (ladder.losses <= limit).any()
    ]
    return min(found, key=total_bytes, default=None)


def has_ranks(menu: Menu) -> bool:
    """Whether a method offers the layer in some rank."""
    return any(_rank(choice) is not None for choice in menu)


class _Rung(NamedTuple):
    """A choice that a layer takes when the threshold falls below a level."""

    level: float
    layer: str
    choice: Choice


class _Ladder(NamedTuple):
    """All layers as one threshold falls from level to level.

    bytes: int64 [n], rising; losses: float64 [n]; both of all layers together where the first
        `ends` rungs are taken.
    """

    rungs: Sequence[_Rung]
    ends: np.ndarray  # int64 [n]
    bytes: np.ndarray
    losses: np.ndarray

    def at(self, place: int) -> Chosen:
        return {rung.layer: rung.choice for rung in self.rungs[: self.ends[place]]}


def _ladders(options: Options, levels: Levels) -> Iterator[_Ladder]:
    """One for every method and storage that has ranks.

    Raises:
        BadSettings: there is none.
    """
    families = {_family(c) for menu in options.values() for c in menu if _rank(c) is not None}
    if options and not families:
        raise BadSettings(
            "this solver chooses ranks, and none of the methods has any; allow low_rank or svd, or "
            "take the solver exact"
        )
    for family in sorted(families, key=repr):
        rungs = [
            rung
            for name, menu in options.items()
            for rung in _rungs(name, menu, family, levels[name])
        ]
        yield _ladder(rungs)


def _rungs(name: str, menu: Menu, family: Any, levels: np.ndarray) -> Iterator[_Rung]:
    """A layer's choices of this family from the smallest on, and the layer as it is."""
    kept = [c for c in menu if c.method == "keep"]
    most = kept[0].bytes if kept else np.inf
    ranked = [c for c in menu if _rank(c) is not None and _family(c) == family and c.bytes < most]
    level, size = np.inf, -1
    for choice in [*sorted(ranked, key=lambda c: c.settings.rank), *kept] or [menu[0]]:
        if choice.bytes > size:
            yield _Rung(level, name, choice)
            size, rank = choice.bytes, _rank(choice)
            level = float(levels[rank]) if rank is not None and rank < len(levels) else 0.0


def _rank(choice: Choice) -> int | None:
    """What low-rank methods call so in their settings."""
    rank: int | None = getattr(choice.settings, "rank", None)
    return rank


def _family(choice: Choice) -> tuple[str, Any]:
    """The method and its settings but for the rank."""
    ranked = _rank(choice) is not None
    return choice.method, replace(choice.settings, rank=0) if ranked else choice.settings


def _ladder(rungs: Sequence[_Rung]) -> _Ladder:
    order = sorted(rungs, key=lambda rung: -rung.level)
    levels = np.array([rung.level for rung in order])
    ends = np.flatnonzero(np.append(levels[1:] != levels[:-1], True)) + 1
    sizes, drops, at = [], [], dict[str, Choice]()
    for _, name, choice in order:
        before = at.get(name)
        sizes.append(choice.bytes - (before.bytes if before else 0))
        drops.append(before.loss - choice.loss if before else 0.0)
        at[name] = choice
    # losses are summed from the lowest up, since the largest would drown it
    rising = np.cumsum([total_loss(at), *drops[:0:-1]])[::-1]  # after each rung
    return _Ladder(order, ends, np.cumsum(sizes)[ends - 1], rising[ends - 1])
