"""Names of actors and placement groups. They say all that is to be known of a deployment: what Ray
lists is what there is, so nothing else has to be kept that could differ from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from embedcomp.sharding.cutting import slots_in

NAMESPACE = "embedcomp"  # of Ray, in which all of them are


@dataclass(frozen=True, order=True)
class ShardName:
    """A replica of a shard.

    generation: of the shards that were deployed together; each has all slots.
    """

    model: str
    generation: int
    shard: int
    shards: int
    replica: int

    def __str__(self) -> str:
        return f"{self.group}/{self.replica}"

    @property
    def group(self) -> str:
        """The name of the placement group of the replicas."""
        return f"{self.model}/{self.generation}/shard/{self.shard}of{self.shards}"

    @property
    def slots(self) -> tuple[int, ...]:
        return slots_in(f"{self.shard}/{self.shards}")

    @property
    def what(self) -> str:
        """What it is, for people."""
        return f"shard {self.shard}/{self.shards}, replica {self.replica}"


@dataclass(frozen=True, order=True)
class FrontName:
    """A server that clients call."""

    model: str
    number: int

    def __str__(self) -> str:
        return f"{self.group}/{self.number}"

    @property
    def group(self) -> str:
        """The name of the placement group of all fronts."""
        return f"{self.model}/front"

    @property
    def what(self) -> str:
        """What it is, for people."""
        return f"front {self.number}"


def read(name: str) -> ShardName | FrontName | None:
    """A name that was written by str; None: it is another's."""
    if found := re.fullmatch(r"([^/]+)/(\d+)/shard/(\d+)of(\d+)/(\d+)", name):
        return ShardName(found[1], *map(int, found.groups()[1:]))
    if found := re.fullmatch(r"([^/]+)/front/(\d+)", name):
        return FrontName(found[1], int(found[2]))
    return None


def generation(model: str, number: int, shards: int, replicas: int) -> Sequence[ShardName]:
    """The names of all shards of a generation."""
    every = ((shard, replica) for shard in range(shards) for replica in range(replicas))
    return [ShardName(model, number, shard, shards, replica) for shard, replica in every]


def generations(names: Iterable[ShardName]) -> dict[int, list[ShardName]]:
    """Names by generation, in order."""
    found: dict[int, list[ShardName]] = {}
    for name in sorted(names):
        found.setdefault(name.generation, []).append(name)
    return found


def chosen(
    by_generation: dict[int, list[ShardName]], ready: Iterable[ShardName], current: int | None
) -> int | None:
    """The generation that a front is to ask; None: none has all slots.

    A front goes over to a newer generation once all of it is ready, and stays with what it has as
    long as that is there. One that has none takes what has all slots, the oldest first, since a
    newer one may still be given up.
    """
    there = set(ready)
    whole = [number for number, names in by_generation.items() if there.issuperset(names)]
    if whole and (current is None or whole[-1] > current):
        return whole[-1]
    if current in by_generation:
        return current
    for number, names in by_generation.items():
        if {n.shard for n in names if n in there} == set(range(names[0].shards)):
            return number
    return None
