"""Load on a server by real rows of a log, and the latency of its answers.

With a rate the loop is open: calls have times, drawn beforehand, that no answer moves, and latency
counts from them. A call that cannot be sent in time, since too many are in flight, has waited since
then, and a server that stalls makes all the calls slow that would have come meanwhile.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any

import grpc
import numpy as np

from embedcomp.log.click_log import ClickLog
from embedcomp.serving.access import arguments, credentials
from embedcomp.serving.calls import SERVICE, authorization, channel, options, told
from embedcomp.serving.client import Client
from embedcomp.serving.latency import Latencies
from embedcomp.serving.prepared import Prepared, prepared
from embedcomp.serving.settings import AccessSettings, LoadSettings
from embedcomp.support.progress import Doing, Watch, quiet

ANSWERED = "OK"
NOT_SENT = "NOT_SENT"  # beside gRPC's statuses: too many calls were in flight until it was too late
LEAD_S = 0.1  # from the start of the threads to the first call
FIRST_S = 10.0  # that a connection and its first call may take
AWAY = grpc.StatusCode.UNAVAILABLE.name
PAUSE_S = 0.05  # in a closed loop, after a call that no server took, so as not to spin
BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)

Send = Callable[..., bytes]  # takes a request and its timeout in seconds


@dataclass
class Tally:
    """What became of the calls that are counted; each thread has its own."""

    statuses: dict[str, Latencies] = field(default_factory=dict)
    late: Latencies = field(default_factory=Latencies)  # from scheduled to sent
    ended: float = 0.0  # when the last one was answered

    def add(self, status: str, due: float, sent: float, ended: float) -> None:
        self.statuses.setdefault(status, Latencies()).add(ended - due)
        if status != NOT_SENT:
            self.late.add(max(sent - due, 0.0))
        self.ended = max(self.ended, ended)

    def merge(self, other: Tally) -> None:
        for status, times in other.statuses.items():
            self.statuses.setdefault(status, Latencies()).merge(times)
        self.late.merge(other.late)
        self.ended = max(self.ended, other.ended)


def load(
    target: str,
    log: ClickLog,
    settings: LoadSettings,
    access: AccessSettings | None = None,
    watch: Watch = quiet,
) -> dict[str, Any]:
    """Put load on the server at `target`; a run for each rate, or one in a closed loop.

    Returns:
        target, log, model and version that answered, settings, requests (what was sent), and runs,
        of which `_summary` says what is in them.

    Raises:
        BadLog, BadSettings: as `prepared`.
        Unreachable, CallFailed: the server cannot be called, or refuses such a request.
    """
    given = arguments(access or AccessSettings())
    with Client(target, retry_exhausted=True, **given) as client:
        served = client.metadata()
    made = prepared(served, target, log, settings)
    with _connections(target, given, min(settings.connections, settings.in_flight)) as sends:
        for send in sends:
            _refuse_broken(send, made.requests[0], target)
        runs = [
            _run(rate, sends, made.requests, settings, watch) for rate in settings.rate or (None,)
        ]
    return {
        "target": target,
        "log": log.path,
        "model": served.model,
        "version": served.version,
        "settings": dataclasses.asdict(settings),
        "requests": _told(made, settings),
        "runs": runs,
    }


def _told(requests: Prepared, settings: LoadSettings) -> dict[str, Any]:
    return {
        "different": len(requests.requests),
        "candidates": settings.candidates,
        "mean_bytes": requests.mean_bytes,
        "log_rows": requests.log_rows,
    }


@contextmanager
def _connections(target: str, given: Mapping[str, Any], count: int) -> Iterator[list[Send]]:
    """Ways to send bytes, each over a connection of its own; nothing is sent again."""
    shown = credentials(given["tls"], given["ca"], given["cert"], given["key"])
    metadata = authorization(given["token"])
    with ExitStack() as opened:
        channels = [channel(target, shown, options(retries=0)) for _ in range(count)]
        for one in channels:
            opened.callback(one.close)
        yield [
            partial(one.unary_unary(f"/{SERVICE}/Predict"), metadata=metadata) for one in channels
        ]


def _refuse_broken(send: Send, request: bytes, target: str) -> None:
    """Raises Unreachable or CallFailed where such a call cannot succeed, whatever the load."""
    try:
        send(request, timeout=FIRST_S)
    except grpc.RpcError as error:
        if error.code() not in BUSY:
            raise told(target, error) from error


def _run(
    rate: float | None,
    sends: Sequence[Send],
    requests: Sequence[bytes],
    settings: LoadSettings,
    watch: Watch,
) -> dict[str, Any]:
    """The calls of one rate."""
    watch(Doing("load in a closed loop" if rate is None else f"load at {rate:g} calls/s"))
    times = None if rate is None else scheduled(rate, settings)
    clock = _Clock(time.monotonic() + LEAD_S, settings, 0.0 if rate else PAUSE_S)
    turns, numbers = itertools.cycle(requests), itertools.count()
    before = time.process_time()
    pool, tally = ThreadPoolExecutor(settings.in_flight), Tally()
    try:
        working = [
            pool.submit(
                _work,
                sends[place % len(sends)],
                turns,
                _closed_loop(clock) if times is None else _open_loop(clock, times, numbers),
                clock,
            )
            for place in range(settings.in_flight)
        ]
        for one in working:
            tally.merge(one.result())
    finally:
        clock.stop.set()
        pool.shutdown(wait=False)  # who breaks off closes the connections, which ends the calls
    cores = (time.process_time() - before) / (time.monotonic() - clock.began)
    return _summary(rate, tally, clock, settings) | {"generator_cores": cores}


class _Clock:
    """When calls begin, count and end, in seconds of time.monotonic()."""

    def __init__(self, began: float, settings: LoadSettings, pause_s: float):
        self.began, self.pause_s = began, pause_s
        self.counted = began + settings.warm_up_s
        self.ends = self.counted + settings.seconds
        self.timeout_s = settings.timeout_s
        self.stop = Event()  # set where the run is broken off


def scheduled(rate: float, settings: LoadSettings) -> np.ndarray:
    """When calls are sent, float64, in seconds from the start of the warm-up.

    The times are those of a Poisson process, given that there are as many as the rate makes on
    average: independent and uniform.
    """
    draw = np.random.default_rng(settings.seed).uniform
    warm, seconds = settings.warm_up_s, settings.seconds
    before = draw(0, warm, round(rate * warm))
    counted = draw(warm, warm + seconds, round(rate * seconds))
    return np.sort(np.concatenate([before, counted]))


def _open_loop(clock: _Clock, times: np.ndarray, numbers: Iterator[int]) -> Iterator[float]:
    """Waits for the next time that no other thread has taken, until none is left."""
    while (number := next(numbers)) < len(times):
        due = clock.began + float(times[number])
        if clock.stop.wait(max(due - time.monotonic(), 0.0)):
            return
        yield due


def _closed_loop(clock: _Clock) -> Iterator[float]:
    """Now, as often as it is asked, to the end of the run."""
    clock.stop.wait(max(clock.began - time.monotonic(), 0.0))
    while not clock.stop.is_set() and (now := time.monotonic()) < clock.ends:
        yield now


def _work(send: Send, requests: Iterator[bytes], dues: Iterator[float], clock: _Clock) -> Tally:
    """Make calls one after another, each when it is due, until there are no more."""
    tally = Tally()
    for due in dues:
        sent = time.monotonic()
        late = sent - due > clock.timeout_s
        status = NOT_SENT if late else _status(send, next(requests), clock.timeout_s)
        if due >= clock.counted:
            tally.add(status, due, sent, time.monotonic())
        if status == AWAY:
            clock.stop.wait(clock.pause_s)
    return tally


def _status(send: Send, request: bytes, timeout_s: float) -> str:
    """What became of a call."""
    try:
        send(request, timeout=timeout_s)
    except grpc.RpcError as error:
        status: str = error.code().name
        return status
    return ANSWERED


def _summary(
    rate: float | None, tally: Tally, clock: _Clock, settings: LoadSettings
) -> dict[str, Any]:
    """What a run has found.

    rate is None in a closed loop. scheduled, sent, answered and failed (by status) are calls;
    those that are NOT_SENT could not be sent within `timeout_s`, since too many were in flight.
    Calls and rows a second are those answered, until the last of the counted ones had ended.
    latency_ms is of answered calls, failed_ms of others by their status, and late_ms is how long
    after their time calls were sent: percentiles and max, None where there were none.
    """
    failed = {status: times for status, times in tally.statuses.items() if status != ANSWERED}
    answered = tally.statuses.get(ANSWERED, Latencies())
    a_second = answered.count / max(settings.seconds, tally.ended - clock.counted)
    return {
        "rate": rate,
        "seconds": settings.seconds,
        "scheduled": answered.count + sum(times.count for times in failed.values()),
        "sent": tally.late.count,
        "answered": answered.count,
        "failed": {status: times.count for status, times in sorted(failed.items())},
        "calls_per_second": a_second,
        "rows_per_second": a_second * settings.candidates,
        "latency_ms": answered.summary(),
        "failed_ms": {status: times.summary() for status, times in sorted(failed.items())},
        "late_ms": tally.late.summary(),
    }
