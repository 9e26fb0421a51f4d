"""A few options out of very many, that differ in layer, method and magnitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedcomp.planning.choices import Choice

ANOTHER_METHOD = 1.0  # as far from an option as one whose predicted loss is e times its own


@dataclass(frozen=True)
class Option:
    """One choice of one layer."""

    layer: str
    choice: Choice


def diverse(
    candidates: Mapping[str, Sequence[Choice]], count: int, least: float, seed: int
) -> list[Option]:
    """Options by layer and predicted loss: each the farthest from those of its layer taken before.

    Distances are between the logarithms of predicted losses, so all magnitudes are there and near
    duplicates come last. Each layer's first is drawn at random; what changes nothing is left out.

    Args:
        count: of all layers together; fewer only where there are fewer.
        least: options with smaller predicted losses are taken only where others are too few.
    """
    options = [Option(n, c) for n, found in candidates.items() for c in found if c.loss > 0]
    enough = [option for option in options if option.choice.loss >= least]
    if len(enough) < count:
        enough = sorted(options, key=lambda option: -option.choice.loss)[:count]
    taken = [enough[i] for i in _farthest(enough, count, np.random.default_rng(seed))]
    order = {name: i for i, name in enumerate(candidates)}
    return sorted(taken, key=lambda option: (order[option.layer], option.choice.loss))


def _farthest(options: Sequence[Option], count: int, rng: np.random.Generator) -> list[int]:
    """Places of up to `count` options."""
    layers = np.array([option.layer for option in options])
    methods = np.array([option.choice.method for option in options])
    logs = np.log([option.choice.loss for option in options])
    ties = rng.random(len(options))
    distances = np.full(len(options), np.inf)
    taken: list[int] = []
    while len(taken) < min(count, len(options)):
        new = int(np.lexsort((ties, distances))[-1])
        taken.append(new)
        apart = np.abs(logs - logs[new]) + ANOTHER_METHOD * (methods != methods[new])
        distances = np.where(layers == layers[new], np.minimum(distances, apart), distances)
        distances[taken] = -1
    return taken
