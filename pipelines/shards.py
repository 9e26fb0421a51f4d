"""Pieces of a log shared out to Ray tasks, and their results put together again.

A task that dies is run again by Ray (`max_retries`); an error of the user's ends the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayTaskError

from embedcomp.errors import EmbedcompError
from embedcomp.log.click_log import Piece
from embedcomp.pipelines.cluster import cpus

HELD_RESULTS = 4  # that a task makes ahead of the driver: bounds the object store's memory


class Summable(Protocol):
    """What adds up with `+=`."""

    def __iadd__(self, other: Any) -> Any: ...


R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S", bound=Summable)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How a step over a log is spread."""

    tasks: int = 0  # at a time, one CPU each; 0: one for each CPU of the cluster
    retries: int = 3  # of a task whose process dies

    def of(self, pieces: Sequence[Piece]) -> list[list[Piece]]:
        """The pieces dealt out in turn, one list a task."""
        tasks = min(len(pieces), self.tasks or max(1, cpus()))
        return [list(pieces[first::tasks]) for first in range(tasks)]


def total(work: Callable[[list[Piece]], S], pieces: Sequence[Piece], shards: Shards, start: S) -> S:
    """`start` plus `work` of all shards, for what adds up exactly in any order.

    What comes from Ray's memory is read-only, so the sum cannot be kept in the first of them.
    """
    task = _task(_plain(work), num_cpus=1, max_retries=shards.retries)
    for ref in [task(shard) for shard in shards.of(pieces)]:
        start += fetched(ref)
    return start


def in_piece_order(
    work: Callable[[list[Piece]], Iterator[R]], pieces: Sequence[Piece], shards: Shards
) -> Iterator[R]:
    """What `work` yields for each piece, in the pieces' own order, whatever the shards are."""
    task = _task(
        _plain_each(work),
        num_cpus=1,
        max_retries=shards.retries,
        num_returns="streaming",
        _generator_backpressure_num_objects=HELD_RESULTS,
    )
    streams = [task(shard) for shard in shards.of(pieces)]
    for number in range(len(pieces)):
        yield fetched(next(streams[number % len(streams)]))


def each(work: Callable[[T], R], items: Sequence[T], shards: Shards) -> Iterator[R]:
    """`work` of each item in a task of its own, in the items' order."""
    task = _task(_plain(work), num_cpus=1, max_retries=shards.retries)
    yield from map(fetched, [task(item) for item in items])


def once(work: Callable[[], R], *, num_cpus: int, retries: int) -> R:
    """`work` in one task, so that it runs on the cluster and not on the driver's machine."""
    return fetched(_task(_plain(work), num_cpus=num_cpus, max_retries=retries)())


def _task(work: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """What starts `work` as a Ray task and gives its reference, or a stream of them."""
    return ray.remote(**options)(work).remote


def fetched(ref: Any) -> Any:
    """A task's result.

    Raises:
        EmbedcompError: the task ended with one; the sentence is the same, without Ray's traceback.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, EmbedcompError):
            raise error.cause from None
        raise


def _plain(work: Callable[..., R]) -> Callable[..., R]:
    """`work`, with its errors turned into a form that can be sent to another process."""

    def task(*args: Any) -> R:
        try:
            return work(*args)
        except EmbedcompError as error:
            raise EmbedcompError(str(error)) from None

    return task


def _plain_each(work: Callable[..., Iterator[R]]) -> Callable[..., Iterator[R]]:
    def task(*args: Any) -> Iterator[R]:
        try:
            yield from work(*args)
        except EmbedcompError as error:
            raise EmbedcompError(str(error)) from None

    return task
