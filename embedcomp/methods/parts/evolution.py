"""Evolutionary search for one option a field within a cost, as OptEmbed searches for widths.

Source: arXiv 2208.04482, with a limit to the cost. In the authors' code the AUC that is reported is
another candidate's, and the best candidate may be mutated in place; here candidates are tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedcomp.support.progress import Counter, Watch, quiet

GENERATIONS = 30
ELITE = 10  # candidates that a generation is made of
MUTATIONS = 10  # a generation
CROSSOVERS = 10  # a generation
MUTATED = 0.1  # chance of a field to be drawn anew

Candidate = tuple[int, ...]  # the number of an option of each field


@dataclass(frozen=True)
class Best:
    """The best candidate that was found, and its own fitness."""

    candidate: Candidate
    fitness: float


@dataclass(frozen=True)
class Evolution:
    """A search.

    sizes: options of each field, which are in order of what they cost.
    fitness: of a candidate, to be large.
    cost: of a candidate, infinite where it cannot be.
    most: that a candidate may cost.
    """

    sizes: Sequence[int]
    fitness: Callable[[Candidate], float]
    cost: Callable[[Candidate], float]
    most: float
    random: np.random.Generator

    def best(self, start: Candidate, watch: Watch = quiet) -> Best:
        """The best candidate of all generations.

        Args:
            start: a candidate of the first one, which is within the cost.
            watch: is told of each generation.
        """
        assert self.cost(start) <= self.most, (start, self.cost(start), self.most)
        first = [self._drawn() for _ in range(MUTATIONS + CROSSOVERS)]
        known = self._measured([start, *first], {})
        generations = Counter(watch, "searching", GENERATIONS, "generations")
        for _ in generations.over(range(GENERATIONS)):
            elite = sorted(known, key=lambda one: (-known[one], one))[:ELITE]
            mutated = [self._mutated(self._one_of(elite)) for _ in range(MUTATIONS)]
            crossed = [
                self._crossed(self._one_of(elite), self._one_of(elite)) for _ in range(CROSSOVERS)
            ]
            known = self._measured([*elite, *mutated, *crossed], known)
        found = min(known, key=lambda one: (-known[one], one))
        return Best(found, known[found])

    def _measured(
        self, candidates: Sequence[Candidate], known: dict[Candidate, float]
    ) -> dict[Candidate, float]:
        """Candidates within the cost, each with its fitness, which is found once."""
        found = dict(known)
        for candidate in map(self._repaired, candidates):
            if candidate is not None and candidate not in found:
                found[candidate] = self.fitness(candidate)
        return found

    def _repaired(self, candidate: Candidate) -> Candidate | None:
        """The candidate with cheaper options of some fields, until it is within the cost."""
        genes = list(candidate)
        while self.cost(tuple(genes)) > self.most:
            above = np.flatnonzero(genes)
            if not len(above):
                return None
            field = int(self.random.choice(above))
            genes[field] = int(self.random.integers(genes[field]))
        return tuple(genes)

    def _drawn(self) -> Candidate:
        return tuple(int(self.random.integers(size)) for size in self.sizes)

    def _mutated(self, candidate: Candidate) -> Candidate:
        anew = self.random.random(len(candidate)) < MUTATED
        return tuple(
            other if new else old
            for old, other, new in zip(candidate, self._drawn(), anew, strict=True)
        )

    def _crossed(self, one: Candidate, other: Candidate) -> Candidate:
        """The first fields of one and the last of the other, some of each where there are two."""
        if len(one) < 2:
            return one
        cut = int(self.random.integers(1, len(one)))
        return one[:cut] + other[cut:]

    def _one_of(self, elite: Sequence[Candidate]) -> Candidate:
        return elite[int(self.random.integers(len(elite)))]
