"""Greedy: from the cheapest choices upwards, always the step that buys most for what it costs.

Steps go along the lower convex hulls of the layers' choices; one that does not fit any more ends
its layer. The value is above the optimum by less than the one step that did not fit first.
"""

from __future__ import annotations

from collections.abc import Sequence

from embedcomp.planning.choices import Chosen
from embedcomp.planning.fronts import (
    ROUNDING,
    Front,
    Options,
    by_bytes,
    by_loss,
    named,
    steps,
)


def least_loss(options: Options, most_bytes: float) -> Chosen | None:
    return _named(options, by_bytes(options), most_bytes)


def least_bytes(options: Options, most_loss: float) -> Chosen | None:
    return _named(options, by_loss(options), most_loss * (1 + ROUNDING))


def _named(options: Options, fronts: Sequence[Front], limit: float) -> Chosen | None:
    places = bought(fronts, limit)
    return None if places is None else named(options, fronts, places)


def bought(fronts: Sequence[Front], limit: float) -> list[int] | None:
    """Place of each layer's choice; None if not even the cheapest fit."""
    room = limit - sum(float(front.costs[0]) for front in fronts)
    if room < 0:
        return None
    places, ended = [0] * len(fronts), set()
    found = steps(fronts)
    wanted = zip(found.costs.tolist(), found.layers.tolist(), found.places.tolist(), strict=True)
    for cost, layer, place in wanted:
        if layer in ended:
            continue
        if cost <= room:
            room, places[layer] = room - cost, place
        else:
            ended.add(layer)
    return places
