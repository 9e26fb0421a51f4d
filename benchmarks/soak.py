"""A server under half its load whose model is swapped and whose workers are killed all the while.

    python -m benchmarks.soak

Two versions of a small model, on a made-up log, are served by `embedcomp serve --workers 2`. Calls
come at fixed times; every 10 seconds the other version is loaded by Triton's RepositoryModelLoad,
and every 30 seconds a worker process is killed. The scores of each answer have to be those, to the
last bit, of the version that the answer names. A call whose connection went with its worker is sent
again, as a client would; any other that is not served is a failed one. Memory and open handles of
the server and its workers are read each second.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

from benchmarks import result
from benchmarks.script import WORK, command, console, parser
from benchmarks.served import load, made
from benchmarks.served.http2 import OK
from benchmarks.served.load import Call, Phase, milliseconds
from benchmarks.served.made import PREDICT, Calls
from benchmarks.served.server import Server, ended_by_sigterm, once
from embedcomp.artifact.artifact import versions
from embedcomp.log.click_log import ClickLog
from embedcomp.log.synth import synth
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.wire import inference_pb2
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2

NAME, SIZE, ROWS = "soaked", "64", 20_000
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
CONNECTIONS, IN_FLIGHT, RETRIES = 8, 8, 20
SHARE = 0.5  # of the capacity


class Swaps:
    """A thread that loads the other version every few seconds."""

    def __init__(self, server: Server, every: float):
        self._server, self._every, self._stop = server, every, Event()
        self.seconds: list[float] = []
        self.failed: Counter[str] = Counter()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Swaps:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        version = 2
        while not self._stop.wait(self._every):
            version = 3 - version
            began = time.perf_counter()
            try:
                status, _ = once(self._server.target, LOAD, _load(version), 30.0)
            except OSError as error:
                status = type(error).__name__
            if status == OK:
                self.seconds.append(time.perf_counter() - began)
            else:
                self.failed[status] += 1


class Checks:
    """Answers held against the scores of the version that they name."""

    def __init__(self, folder: Path, calls: Calls):
        self.wrong, self.by_version = 0, Counter[int]()
        self._wanted = {
            version: [
                Scorer.open(folder / str(version)).score(*one).tobytes() for one in calls.columns
            ]
            for version in versions(folder)
        }

    def __call__(self, call: Call, message: bytes) -> None:
        answer = scoring_pb2.PredictResponse.FromString(message)
        self.by_version[answer.version] += 1
        self.wrong += answer.scores != self._wanted[answer.version][call.message]


class Watched:
    """Memory and handles each second, and a worker killed now and then."""

    def __init__(self, server: Server, kill_every: float, until: float):
        self._server, self._every, self._until = server, kill_every, until
        self.resident: list[int] = []
        self.handles: list[int] = []
        self.killed = 0
        self._next = kill_every

    def __call__(self, now: float) -> None:
        self.resident.append(self._server.resident())
        self.handles.append(self._server.handles())
        if self._next <= now < self._until:
            self._next += self._every
            workers = self._server.workers()
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(workers[self.killed % len(workers)], signal.SIGKILL)
                    self.killed += 1


def main() -> None:
    options = _options()
    ended_by_sigterm()
    torch.set_num_threads(1)
    work = options.work / "soak"
    log = _log(work / "log")
    folder = work / NAME
    for seed in range(len(versions(folder)), 2):
        made.trained(log, folder, options.set, seed)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [cores[-1]])
    calls = Calls(Scorer.open(folder).features, log, SIZE)
    workers = ["--workers", str(options.workers)] if options.workers > 1 else []
    with Server.embedcomp(
        work / NAME, PREDICT, calls.ours[0], work / "server.log", *workers, *options.serve,
        cores=cores[:1],
    ) as server:  # fmt: skip
        found = _soaked(server, folder, calls, options)
    console.print(
        {name: part for name, part in found.items() if name not in ("resident_bytes", "handles")}
    )
    written = result.write(
        "soak",
        data={"name": "made up", "rows": ROWS},
        settings={
            "rows": calls.rows,
            "connections": CONNECTIONS,
            "share_of_capacity": SHARE,
            **{
                name: getattr(options, name)
                for name in ("seconds", "swap_every", "kill_every", "workers", "serve")
            },
        },
        seeds=[0, 1],
        results=found,
        folder=options.results,
    )
    print(written)


def _soaked(
    server: Server, folder: Path, calls: Calls, options: argparse.Namespace
) -> dict[str, Any]:
    messages, checks = calls.ours, Checks(folder, calls)
    capacity = load.closed(
        server.target,
        PREDICT,
        messages,
        in_flight=IN_FLIGHT,
        seconds=min(5.0, options.seconds),
        warm_up=0.5,
        cpu=server.cpu,
    ).figures(calls.rows)
    watched = Watched(server, options.kill_every, options.seconds)
    phases = [Phase("half", SHARE * capacity["calls_per_second"], options.seconds)]
    with Swaps(server, options.swap_every) as swaps:
        sent = load.opened(
            server.target,
            PREDICT,
            messages,
            phases,
            connections=CONNECTIONS,
            each_second=watched,
            check=checks,
            retries=RETRIES,
        )
    failed = Counter(one.status or "no answer" for one in sent if one.status != OK)
    return {
        "capacity": capacity,
        "calls": len(sent),
        "wrong_scores": checks.wrong,
        "by_version": dict(checks.by_version),
        "failed": dict(failed),
        "sent_again": sum(one.tries > 1 for one in sent),
        "most_tries": max(one.tries for one in sent),
        "latencies": milliseconds(_taken(sent, lambda one: one.tries == 1)),
        "latencies_of_sent_again": milliseconds(_taken(sent, lambda one: one.tries > 1)),
        "swaps": {"seconds": swaps.seconds, "failed": dict(swaps.failed)},
        "killed_workers": watched.killed,
        "grown_bytes": _grown(watched.resident),
        "grown_handles": _grown(watched.handles),
        "resident_bytes": watched.resident,
        "handles": watched.handles,
    }


def _taken(calls: Sequence[Call], which: Callable[[Call], bool]) -> np.ndarray:
    return np.array([one.done - one.due for one in calls if one.status == OK and which(one)])


def _grown(values: Sequence[int]) -> float:
    """The median of the last fifth less that of the second one: the first has the start in it."""
    size = max(len(values) // 5, 1)
    return median(values[-size:]) - median(values[size : 2 * size] or values[:1])


def _load(version: int) -> bytes:
    request = inference_pb2.RepositoryModelLoadRequest(model_name=NAME)
    request.parameters["version"].int64_param = version
    return request.SerializeToString()


def _log(folder: Path) -> ClickLog:
    if not (folder / "schema.toml").exists():
        synth(folder, rows=ROWS)
    return ClickLog(str(folder.resolve()))


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--seconds", type=float, default=600.0)
    options.add_argument("--swap-every", type=float, default=10.0, help="seconds")
    options.add_argument("--kill-every", type=float, default=30.0, help="seconds")
    options.add_argument("--workers", type=int, default=2, help="processes that serve")
    options.add_argument("--set", action="append", default=[], help="a setting of the trainer")
    options.add_argument("--serve", type=str.split, default=[], help="more for embedcomp serve")
    options.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
