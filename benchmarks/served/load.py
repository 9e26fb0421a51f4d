"""Load from prepared bytes: in turn (closed), or at fixed times whatever the server does (open)."""

from __future__ import annotations

import selectors
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.served.http2 import LOST, NOT_TAKEN, OK, Answer, Connection

WAIT_S = 0.002
AWAY = (LOST, NOT_TAKEN)  # of a connection, and of no server
RETRY_S = 0.05  # from an end to sending again
LATE_S = 15.0  # after which an answer that is missing comes no more


class Lines:
    """Some connections to one server; one that ends is opened anew."""

    def __init__(self, target: str, method: str, count: int):
        self._target, self._method = target, method
        self._selector = selectors.DefaultSelector()
        self._lines = [self._opened() for _ in range(count)]
        self._at, self._failed = 0, list[Answer]()
        self.opened = count

    def send(self, message: bytes, call: Any) -> None:
        """Send on the next connection; where none can be opened, the answer is LOST."""
        self._at = (self._at + 1) % len(self._lines)
        if not self._lines[self._at].usable:
            try:
                self._lines[self._at] = self._opened()
                self.opened += 1
            except OSError:
                self._failed.append(Answer(call, LOST))
                return
        self._lines[self._at].send(message, call)

    def wait(self, seconds: float) -> list[Answer]:
        """Answers that have come, as soon as there are some.

        The system waits for whole milliseconds; what is shorter is waited for by coming back.
        """
        found, self._failed = self._failed, []
        for key, ready in self._selector.select(0.0 if found or seconds < WAIT_S else seconds):
            one: Connection = key.data
            if ready & selectors.EVENT_WRITE:
                one.flush()
            if ready & selectors.EVENT_READ:
                found += one.read()
            self._follow(one)
        for one in self._lines:
            if one.open and one.wants_to_write:
                self._follow(one)
        return found

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.close()
        self._selector.close()

    def _opened(self) -> Connection:
        made = Connection(self._target, self._method)
        self._selector.register(made.socket, selectors.EVENT_READ, made)
        return made

    def _follow(self, one: Connection) -> None:
        """Watch a connection for what it waits for, and no more once it is over."""
        if not one.open or (not one.usable and not len(one)):
            self._selector.unregister(one.socket)
            one.close()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if one.wants_to_write else 0)
        if self._selector.get_key(one.socket).events != wanted:
            self._selector.modify(one.socket, wanted, one)


@dataclass
class Closed:
    """What a server did with calls that each wait for one before: seconds, and those of calls."""

    seconds: float
    cpu_seconds: float
    latencies: np.ndarray
    others: Counter[str] = field(default_factory=Counter)  # calls by status, but OK

    def figures(self, rows: int) -> dict[str, Any]:
        calls = len(self.latencies)
        if not calls:
            return {"calls": 0, "others": dict(self.others)}
        return {
            "calls": calls,
            "calls_per_second": calls / self.seconds,
            "rows_per_second": rows * calls / self.seconds,
            "cpu_us_per_call": 1e6 * self.cpu_seconds / calls,
            "rows_per_cpu_second": rows * calls / max(self.cpu_seconds, 1e-9),
            "others": dict(self.others),
            **milliseconds(self.latencies),
        }


def closed(
    target: str,
    method: str,
    messages: Sequence[bytes],
    *,
    in_flight: int,
    seconds: float,
    warm_up: float,
    cpu: Callable[[], float],
) -> Closed:
    """Keep some calls in flight, a connection each, and measure after the warm-up.

    Args:
        messages: sent in rotation.
        cpu: seconds that the server has used.
    """
    lines = Lines(target, method, in_flight)
    latencies: list[float] = []
    others: Counter[str] = Counter()
    now = time.perf_counter()
    begin, sent, used = now + warm_up, 0, 0.0
    for _ in range(in_flight):
        lines.send(messages[sent % len(messages)], now)
        sent += 1
    measuring = False
    while now < begin + seconds:
        answers = lines.wait(0.1)
        now = time.perf_counter()
        if not measuring and now >= begin:
            measuring, begin, used = True, now, cpu()
        for one in answers:
            if measuring and one.status == OK:
                latencies.append(now - one.call)
            elif measuring:
                others[one.status] += 1
            lines.send(messages[sent % len(messages)], time.perf_counter())
            sent += 1
    taken = cpu() - used
    lines.close()
    return Closed(now - begin, taken, np.array(latencies), others)


@dataclass(frozen=True)
class Phase:
    name: str
    rate: float  # calls a second
    seconds: float


@dataclass(slots=True)
class Call:
    """A call of an open load; times are seconds since the load began."""

    phase: str
    due: float
    message: int  # its place among the messages
    sent: float = 0.0
    done: float = 0.0
    status: str = ""
    tries: int = 0


def due(phases: Sequence[Phase], messages: int) -> Iterator[Call]:
    """Calls in their order, a phase right behind the other."""
    began, place = 0.0, 0
    for phase in phases:
        for i in range(round(phase.rate * phase.seconds)):
            yield Call(phase.name, began + i / phase.rate, place)
            place = (place + 1) % messages
        began += phase.seconds


def opened(
    target: str,
    method: str,
    messages: Sequence[bytes],
    phases: Sequence[Phase],
    *,
    connections: int,
    each_second: Callable[[float], None] = lambda _: None,
    check: Callable[[Call, bytes], None] = lambda call, message: None,
    retries: int = 0,
) -> list[Call]:
    """Send each call when it is due, and wait for none; calls with what became of them.

    Args:
        check: told a served call and its answer.
        retries: how often a call that went with its connection is sent again.
    """
    lines = Lines(target, method, connections)
    calls: list[Call] = []
    following = due(phases, len(messages))
    coming = next(following, None)
    again: deque[tuple[float, Call]] = deque()  # and when they are sent again
    flying, tick, end = 0, 0.0, sum(phase.seconds for phase in phases) + LATE_S
    began = time.perf_counter()
    while (coming is not None or flying) and (now := time.perf_counter() - began) < end:
        while coming is not None and coming.due <= now:
            coming.sent, coming.tries = now, 1
            lines.send(messages[coming.message], coming)
            calls.append(coming)
            flying, coming = flying + 1, next(following, None)
        while again and again[0][0] <= now:
            call = again.popleft()[1]
            call.tries += 1
            lines.send(messages[call.message], call)
        if now >= tick:
            each_second(now)
            tick += 1.0
        until = 0.1 if coming is None else min(coming.due - time.perf_counter() + began, 0.1)
        until = min(until, RETRY_S) if again else until
        for one in lines.wait(until - 1e-3):
            call = one.call
            call.done, call.status = time.perf_counter() - began, one.status
            if one.status in AWAY and call.tries <= retries:
                again.append((call.done + RETRY_S, call))
                continue
            flying -= 1
            if one.status == OK:
                check(call, one.message)
    lines.close()
    return calls


def milliseconds(seconds: np.ndarray) -> dict[str, float]:
    """p50, p99 and the longest."""
    if not len(seconds):
        return {}
    found = 1e3 * np.quantile(seconds, (0.5, 0.99, 1.0))
    return dict(zip(("p50_ms", "p99_ms", "longest_ms"), found.tolist(), strict=True))
