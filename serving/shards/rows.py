"""Rows from shards for one version of a model: replicas tried in turn, within a deadline."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import grpc
import numpy as np
import pyarrow as pa

from embedcomp.errors import BadSettings
from embedcomp.kernels.routing import SLOTS
from embedcomp.serving import access
from embedcomp.serving.errors import Refused
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.connection import Connection
from embedcomp.serving.shards.replica import Asked, Replica, ShardFailed, Where
from embedcomp.sharding.cutting import Cutting, in_words, refuse_uncovered

LEAST_TRY_S = 0.001  # that a replica has to answer


class ShardsDown(Refused):
    """Slots whose shards do not answer, so that a call has no rows of them."""

    def __init__(self, slots: Sequence[int], why: str):
        super().__init__(
            grpc.StatusCode.UNAVAILABLE, f"slots {in_words(slots)} cannot be read: {why}"
        )


@dataclass(frozen=True)
class Group:
    """Replicas that hold the same slots."""

    slots: tuple[int, ...]
    replicas: list[Replica]
    turns: Iterator[int] = field(default_factory=count)

    def in_turn(self) -> list[Replica]:
        """Those that answer, a different one first each time; if none does, one to say why."""
        live = [one for one in self.replicas if one.live] or self.replicas[:1]
        first = next(self.turns) % len(live)
        return live[first:] + live[:first]


class Rows:
    """Who holds the slots of a version, and gives their rows (sharding/front.py).

    Shards that hold the same slots are replicas of each other.

    Args:
        places: where the shards are.

    Raises:
        BadSettings: a slot is of no shard that answers, or of two that are no replicas.
    """

    def __init__(
        self,
        cutting: Cutting,
        model: str,
        version: int,
        settings: ServerSettings,
        places: Sequence[Where],
    ):
        tls = None
        if settings.shard_tls_ca is not None:
            shown = settings.shard_tls_cert, settings.shard_tls_key
            tls = partial(access.context, settings.shard_tls_ca, *shown)
            tls()  # so that files which cannot be read are told at once
        asked = Asked(model, version, cutting.digest)
        self._deadline_s = settings.shard_deadline_ms / 1000
        self._does_without = settings.shard_down == "default"
        every = [Replica(where, asked, tls) for where in places]
        failed: list[str] = []
        groups: dict[tuple[int, ...], list[Replica]] = {}
        try:
            for replica in every:
                try:
                    groups.setdefault(replica.connect().slots, []).append(replica)
                except ShardFailed as error:
                    failed.append(str(error))
            self._groups = [Group(slots, replicas) for slots, replicas in sorted(groups.items())]
            self._refuse_overlap()
            try:
                refuse_uncovered({slot for slots in groups for slot in slots})
            except BadSettings as error:
                raise BadSettings("; ".join([str(error), *failed])) from None
        except BadSettings:
            _close(every)
            raise
        weakref.finalize(self, _close, every)  # once no call has this version any more
        self._waiting = [one for one in every if one.described is None]
        for replica in self._waiting:  # they may come later, as replicas
            replica.failed(ConnectionError("it did not answer when the version was opened"))
        self.number = len(self._groups)
        self.owner = np.zeros(SLOTS, np.int32)
        for number, group in enumerate(self._groups):
            self.owner[list(group.slots)] = number

    def ask(self, messages: Sequence[pa.Buffer | None]) -> Sequence[pa.Buffer | None]:
        """As sharding/front.py says; all shards are asked at the same time.

        Raises:
            ShardsDown: a shard and its replicas give no answer in time, and calls are to fail then.
        """
        if self._waiting:
            self._take_in()
        due = time.monotonic() + self._deadline_s
        asked = [
            None if message is None else _Question(self._groups[shard], message, due)
            for shard, message in enumerate(messages)
        ]
        answers = [None if question is None else question.answer() for question in asked]
        for question in asked:
            if question is not None and question.failed is not None and not self._does_without:
                raise ShardsDown(question.group.slots, question.failed)
        return answers

    def _take_in(self) -> None:
        """Have replicas that have come since the version was opened."""
        for replica in [one for one in self._waiting if one.described is not None]:
            self._waiting.remove(replica)
            assert replica.described is not None
            for group in self._groups:
                if group.slots == replica.described.slots:
                    group.replicas.append(replica)

    def _refuse_overlap(self) -> None:
        seen: dict[int, Group] = {}
        for group in self._groups:
            for slot in group.slots:
                other = seen.setdefault(slot, group)
                if other is not group:
                    raise BadSettings(
                        f"slot {slot} is of {other.replicas[0].address}, which holds "
                        f"{in_words(other.slots)}, and of {group.replicas[0].address}, which holds "
                        f"{in_words(group.slots)}; replicas hold the same slots"
                    )


class _Question:
    """A message on its way to one of the replicas that hold its slots."""

    def __init__(self, group: Group, message: pa.Buffer, due: float):
        self.group, self._message, self._due = group, message, due
        self.failed: str | None = None
        self._left = group.in_turn()
        self._sent: tuple[Replica, Connection] | None = None
        self._send()

    def _send(self) -> None:
        """Send it to the next replica; where there is none, it has failed."""
        while self._left:
            replica = self._left.pop(0)
            try:
                self._sent = replica, replica.send(self._message, self._due)
                return
            except ShardFailed as error:
                self.failed = str(error)
        self._sent = None

    def answer(self) -> pa.Buffer | None:
        """The answer; None: it has failed."""
        while self._sent is not None:
            replica, stream = self._sent
            now = time.monotonic()
            share = max((self._due - now) / (1 + len(self._left)), LEAST_TRY_S)
            try:
                found = replica.receive(stream, now + share)
            except ShardFailed as error:
                self.failed = str(error)
                self._send()
                continue
            self.failed = None
            return found
        return None


def _close(replicas: Sequence[Replica]) -> None:
    for replica in replicas:
        replica.close()


def finds(settings: ServerSettings, places: Sequence[Where] | None = None) -> partial[Rows]:
    """What finds the shards of a version, for Scorer.open.

    Args:
        places: where they are; None: as the settings say.
    """
    if places is None:
        places = [partial(str, address) for address in settings.shards]
    return partial(Rows, settings=settings, places=places)
