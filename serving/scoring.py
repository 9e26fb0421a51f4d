"""Calls that wait to be scored; small ones of a version are scored together.

The thread that has a call's turn scores it, and what waits with it. Nobody else is needed: a call
that finds nothing before it is scored at once, by its own thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import grpc
import numpy as np

from embedcomp.engine.description import cores
from embedcomp.engine.requests import Read
from embedcomp.errors import BadRequest
from embedcomp.serving.caller import Caller
from embedcomp.serving.errors import Refused
from embedcomp.serving.metrics import Metrics
from embedcomp.serving.models import Models
from embedcomp.serving.served import Served, Work
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shadows import Shadows

# Calls that are read, or whose answers are written, beside those that are scored. Where there are
# more, their threads take the interpreter from the one that receives calls.
BESIDE = 3
FRESH = 0.1  # weight of the latest batch in the mean time of a row
HINT_S = (0.001, 1.0)  # the shortest and the longest time after which a refused call may come back


T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Call:
    """A call on its way to its scores.

    batch: the calls that it is to score, itself among them, once it is its turn.
    """

    served: Served
    work: Work
    came: float
    scores: np.ndarray | None = None
    error: Exception | None = None
    batch: list[_Call] = field(default_factory=list)
    gone: bool = False  # nobody waits for it
    queued_s: float = 0.0  # until its turn came
    turn: threading.Lock = field(default_factory=threading.Lock)  # held until something happens

    def __post_init__(self) -> None:
        self.turn.acquire()

    @property
    def done(self) -> bool:
        return self.scores is not None or self.error is not None

    def score_part(self, rows: int) -> None:
        """Score its next rows, if they can be told apart."""
        try:
            self.scores = self.served.score_part(self.work, rows)
        except Exception as error:  # noqa: BLE001 it goes to the thread that waits for the scores
            self.error = error


class Scoring:
    """Which calls are scored when. So many batches are scored at a time, each of so many rows at
    most; longer calls take several turns, so that short ones need not wait for their end."""

    def __init__(
        self,
        models: Models,
        settings: ServerSettings,
        metrics: Metrics,
        came: Callable[[], float] = time.perf_counter,
    ):
        """`came`: tells when this thread's call came, by time.perf_counter."""
        self._models, self._metrics, self._came = models, metrics, came
        self._shadows = Shadows(lambda shadow, work: self._scored(shadow, work, Caller()), metrics)
        self._most, self._most_waiting = settings.max_batch_rows, settings.max_queue_rows
        self._gather_s = settings.max_wait_us / 1e6
        self.threads = settings.threads or max(cores(None) // settings.workers, 1)
        self._free = self.threads
        self._room = threading.BoundedSemaphore(self.threads + BESIDE)
        self._here = threading.local()  # `inside`: this thread's call takes a place in the room
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._gathering: dict[Served, _Call] = {}  # whose turn it is, but who waits for others
        self._rows = 0  # of the calls that wait
        self._row_s = 0.0  # seconds of a row in a batch
        metrics.queued(lambda: self._rows)

    def score(self, served: Served, caller: Caller, read: Callable[[Served], Work]) -> np.ndarray:
        """Click probabilities float32 [N] of a request. The version's shadow may score it too.

        Args:
            read: reads the request for a version, in the thread that scores it.

        Raises:
            Refused: too many rows wait already, or the caller waits no more.
            BadRequest, BadId: a number or an id is not what the model takes.
        """
        caller.served, caller.read = served, read
        work = read(served)
        caller.rows, caller.defaulted = work.rows, work.defaulted
        if work.defaulted:
            self._metrics.defaulted(served, work.defaulted)
        scores = self._scored(served, work, caller)
        shadow = self._models.shadow(served, caller)
        if shadow is not None:
            self._shadows.compare(shadow, scores, read)
        return scores

    def _scored(self, served: Served, work: Work, caller: Caller) -> np.ndarray:
        call = _Call(served, work, self._came())
        try:
            self._carry_out(call, caller)
        finally:
            took = time.perf_counter() - call.came
            caller.came, caller.queued_s, caller.scored_s = call.came, call.queued_s, took
            served.counts.add(call.scores, round(1e9 * took), round(1e9 * call.queued_s))
        if call.error is not None:
            raise call.error
        assert call.scores is not None
        return call.scores

    def in_room(self, answer: Callable[[bytes, Caller], T]) -> Callable[[bytes, Caller], T]:
        """The same answer, for so many calls at a time; those that were given up get none.

        Calls that wait for their turn to be scored leave the room to others.
        """

        def answered(data: bytes, caller: Caller) -> T:
            with self._room:
                if not caller.is_active():
                    raise _gave_up()
                self._here.inside = True
                try:
                    return answer(data, caller)
                finally:
                    self._here.inside = False

        return answered

    def hint_s(self) -> float:
        """Seconds until what waits now will have been scored."""
        shortest, longest = HINT_S
        return min(max(self._rows * self._row_s / self.threads, shortest), longest)

    def _carry_out(self, call: _Call, caller: Caller) -> None:
        with self._lock:
            leads = self._admit(call)
        told = False  # that it is to be given up with its caller
        while not call.done:
            if not leads:
                if not told and not caller.add_callback(partial(self._give_up, call)):
                    self._give_up(call)
                told = True
                self._wait(call)
            if call.gone:
                raise _gave_up()
            leads = bool(call.batch) and self._lead(call)

    def _wait(self, call: _Call) -> None:
        """Wait for a call's turn, outside of the room."""
        inside = getattr(self._here, "inside", False)
        if inside:
            self._room.release()
        call.turn.acquire()
        if inside:
            self._room.acquire()

    def _joins(self, call: _Call) -> bool:
        """Whether a call may be scored together with others."""
        return call.work.joins and call.work.rows < self._most

    def _admit(self, call: _Call) -> bool:
        """Find a place for a call; whether it is its turn at once."""
        joins, open_to = self._joins(call), self._gathering.get(call.served)
        if joins and open_to is not None:
            rows = sum(one.work.left for one in open_to.batch) + call.work.left
            if rows <= self._most:
                open_to.batch.append(call)
            if rows >= self._most:
                del self._gathering[call.served]
                open_to.turn.release()
            if rows <= self._most:
                return False
        if self._free and not self._waiting:
            self._free -= 1
            call.batch = [call]
            if joins and self._gather_s:
                self._gathering[call.served] = call
            return True
        if self._rows >= self._most_waiting:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._rows:,} candidates wait to be scored, and this server lets "
                f"{self._most_waiting:,} wait; come back later",
                retry_s=self.hint_s(),
            )
        self._queue(call)
        return False

    def _queue(self, call: _Call) -> None:
        self._waiting.append(call)
        self._rows += call.work.left

    def _give_up(self, call: _Call) -> None:
        """Take a call out of those that wait, if it does."""
        with self._lock:
            if call not in self._waiting:
                return
            self._waiting.remove(call)
            self._rows -= call.work.left
            call.gone, call.queued_s = True, time.perf_counter() - call.came
        call.turn.release()

    def _lead(self, call: _Call) -> bool:
        """Score a call's batch and give the turn to the next; whether that is the call again."""
        if self._gather_s and self._gathering.get(call.served) is call:
            call.turn.acquire(timeout=self._gather_s)
            with self._lock:
                if self._gathering.get(call.served) is call:
                    del self._gathering[call.served]
        batch, call.batch = call.batch, []
        self._run(batch)
        with self._lock:
            for one in batch:
                if not one.done:
                    self._queue(one)
            following = self._next()
        for one in batch:
            if one.done and one is not call:
                one.turn.release()
        if following is not None and following is not call:
            following.turn.release()
        return following is call

    def _next(self) -> _Call | None:
        """The call whose turn it is, with its batch; None: nobody waits."""
        if not self._waiting:
            self._free += 1
            return None
        first = self._waiting.popleft()
        batch, rows = [first], first.work.left
        if self._joins(first):
            for one in list(self._waiting):
                fits = one.served is first.served and self._joins(one)
                if fits and rows + one.work.left <= self._most:
                    self._waiting.remove(one)
                    batch.append(one)
                    rows += one.work.left
        self._rows -= rows
        first.batch = batch
        return first

    def _run(self, batch: list[_Call]) -> None:
        """Score the calls of one turn."""
        began, rows = time.perf_counter(), 0
        for one in batch:
            rows += min(one.work.left, self._most)
        for one in batch:
            one.queued_s = one.queued_s or began - one.came
        if len(batch) == 1 or not _score_joined(batch):
            for one in batch:
                one.score_part(self._most)
        took = time.perf_counter() - began
        self._row_s += FRESH * (took / max(rows, 1) - self._row_s)
        self._metrics.batch(rows, took)
        for one in batch:
            if one.done:
                self._metrics.queued_for(one.queued_s)


def _gave_up() -> Refused:
    return Refused(
        grpc.StatusCode.CANCELLED, "the call was cancelled or out of time while it waited"
    )


def _score_joined(batch: list[_Call]) -> bool:
    """Score calls in one; False: one of them has no score, and each has to be tried alone."""
    reads = [one.work for one in batch if isinstance(one.work, Read)]
    try:
        batch[0].served.scorer.score_joined(reads)
    except BadRequest:
        return False
    for one, read in zip(batch, reads, strict=True):
        one.scores = read.scores
    return True
