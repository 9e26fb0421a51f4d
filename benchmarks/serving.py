"""A server on one core under load from another, and what others do with the torchrec model there.

    python -m benchmarks.serving

embedcomp serves the kuairand model at a twentieth of its bytes, raw ids in the calls. KServe's
Python server, Ray Serve's gRPC proxy and Triton's Python backend serve the original, the
uncompressed torchrec model, and get ids that are encoded already, which is in their favour. All
take turns, each time as a process of its own on the same core; calls are prepared bytes over HTTP/2
from another core, one at a time or several on as many connections. CPU time is that of the server's
processes, and of those that they start. In turns with them the scorer scores the same raw columns
in process. The movielens_1m model, of ten features, is served for the CPU time of its calls.

The first run makes an environment for each peer in `build/serving_peers` (`--peers`). A peer that
cannot be installed or does not come up is in the record with its reason.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks import child, result
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.served import load, made, peers
from benchmarks.served.made import INFER, ONE_USER, PREDICT, Calls
from benchmarks.served.server import NotServing, Server, ended_by_sigterm
from embedcomp.artifact.artifact import Artifact
from embedcomp.log.click_log import ClickLog
from embedcomp.scorer.scorer import Scorer

VIDEOS, MOVIES = "kuairand", "movielens_1m"
SIZES = ("1", "64", "512", "2048", ONE_USER)
IN_FLIGHT = (1, 4)
OURS, IN_PROCESS = "embedcomp", "in process"
CLOSE = 1e-5  # of a probability
AIMS = {  # of 64 rows of ten features; of 64 rows; from 512 rows on
    "cpu_us_per_call": 300.0,
    "times kserve": 8.0,
    "times in process": 0.75,
}
TOLD = {  # figures in the table
    "calls_per_second": ",.0f",
    "rows_per_second": ",.0f",
    "p50_ms": ",.2f",
    "p99_ms": ",.2f",
    "cpu_us_per_call": ",.0f",
}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all turns have in common."""

    given: argparse.Namespace
    work: Path
    server_core: int

    def loaded(self, server: Server, method: str, calls: Mapping[str, list[bytes]]) -> Figures:
        """Figures of every size and number of calls in flight."""
        return {
            size: {
                str(count): load.closed(
                    server.target,
                    method,
                    messages,
                    in_flight=count,
                    seconds=self.given.seconds,
                    warm_up=self.given.warm_up,
                    cpu=server.cpu,
                ).figures(_rows(size))
                for count in IN_FLIGHT
            }
            for size, messages in calls.items()
        }

    def ours(self, artifact: Artifact, calls: Mapping[str, Calls]) -> Figures:
        first = calls["64"]
        log = self.work / "embedcomp.log"
        with Server.embedcomp(
            artifact.folder,
            PREDICT,
            first.ours[0],
            log,
            *self.given.serve,
            cores=[self.server_core],
        ) as server:
            _check(PREDICT, server.first, Scorer.open(artifact.folder).score(*first.columns[0]), 0)
            return self.loaded(server, PREDICT, {size: one.ours for size, one in calls.items()})

    def peer(
        self, name: str, python: Path, original: Artifact, calls: Mapping[str, Calls]
    ) -> Figures:
        first = calls["64"]
        with peers.serve(
            name, python, original.folder, first.encoded[0], self.work, [self.server_core]
        ) as server:
            _check(INFER, server.first, _torchrec(original, first), CLOSE)
            return self.loaded(server, INFER, {size: one.encoded for size, one in calls.items()})

    def in_process(self, artifact: Artifact, calls: Mapping[str, Calls]) -> Figures:
        """Rows a second of raw columns, on the server's core."""
        scorer, own = Scorer.open(artifact.folder), os.sched_getaffinity(0)
        os.sched_setaffinity(0, [self.server_core])
        try:
            return {size: self._scored(scorer, one) for size, one in calls.items()}
        finally:
            os.sched_setaffinity(0, own)

    def _scored(self, scorer: Scorer, calls: Calls) -> Figures:
        columns, done = calls.columns, 0
        end = (now := time.perf_counter()) + self.given.warm_up
        while now < end + self.given.seconds:
            if now <= end:
                began, used, done = now, time.process_time(), 0
            scorer.score(*columns[done % len(columns)])
            done += 1
            now = time.perf_counter()
        seconds, cpu = now - began, time.process_time() - used
        return {
            "calls_per_second": done / seconds,
            "rows_per_second": calls.rows * done / seconds,
            "cpu_us_per_call": 1e6 * cpu / done,
            "rows_per_cpu_second": calls.rows * done / cpu,
        }


def main() -> None:
    options = _options()
    ended_by_sigterm()
    torch.set_num_threads(1)
    logs = {name: open_log(options.data, name) for name in (VIDEOS, MOVIES)}
    work = options.work / "serving"
    models = {name: _models(name, logs[name], work / name, options) for name in logs}
    cores = sorted(os.sched_getaffinity(0))
    bench = Bench(options, work, cores[0])
    os.sched_setaffinity(0, [cores[-1]])
    videos = {size: Calls(models[VIDEOS].served.features, logs[VIDEOS], size) for size in SIZES}
    movies = {"64": Calls(models[MOVIES].served.features, logs[MOVIES], "64")}
    turns: dict[str, Callable[[], Figures]] = {
        IN_PROCESS: lambda: bench.in_process(models[VIDEOS].served, videos),
        OURS: lambda: bench.ours(models[VIDEOS].served, videos),
        f"{OURS} {MOVIES}": lambda: bench.ours(models[MOVIES].served, movies),
    }
    pythons, failed = _environments(options)
    for name, python in pythons.items():
        turns[name] = lambda name=name, python=python: bench.peer(
            name, python, models[VIDEOS].original, videos
        )
    rounds: dict[str, list[Figures]] = {name: [] for name in turns}
    for _ in range(options.rounds):
        for name in [name for name in turns if name not in failed]:
            try:
                rounds[name].append(turns[name]())
            except NotServing as error:
                if name not in pythons:
                    raise
                failed[name] = f"it did not come up: {error}"
            console.print(f"{name}: {failed.get(name, 'done')}")
    found = {name: _median(of) for name, of in rounds.items() if of}
    aims = _aims(found)
    written = result.write(
        f"serving-{VIDEOS}",
        data={name: {"rows": log.rows("test")} for name, log in logs.items()},
        settings={
            "sizes": SIZES,
            "in_flight": IN_FLIGHT,
            **{name: getattr(options, name) for name in ("seconds", "warm_up", "rounds", "serve")},
            "train": options.set,
            "budget": made.BUDGET,
            "cores": {"server": 1, "load": 1} if len(cores) > 1 else "one for both",
            "bytes": {name: of.served.manifest.bytes["total"] for name, of in models.items()}
            | {"original": models[VIDEOS].original.manifest.bytes["total"]},
        },
        seeds=[0],
        results={"medians": found, "rounds": rounds, "failed": failed, "aims": aims},
        peers=_versions(pythons),
        folder=options.results,
    )
    console.print(_render(found))
    console.print(aims, failed)
    print(written)


@dataclass(frozen=True)
class Models:
    """An original, which is made when it is asked for, and what is served of it."""

    make: Callable[[], Artifact]
    served: Artifact

    @cached_property
    def original(self) -> Artifact:
        return self.make()


def _models(name: str, log: ClickLog, work: Path, options: argparse.Namespace) -> Models:
    """Models of a log, made unless they are there."""
    there = {VIDEOS: (options.model, options.artifact), MOVIES: (None, options.movies)}[name]
    folders = [given or work / part for given, part in zip(there, ("model", "served"), strict=True)]

    def original() -> Artifact:
        return made.original(log, folders[0], options.set)

    return Models(original, made.compressed(original, log, folders[1]))


def _environments(options: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """The Python of each peer, and why there is none."""
    found, failed = {}, {}
    for name in options.against:
        try:
            found[name] = peers.environment(name, options.peers)
        except peers.PeerMissing as error:
            failed[name] = str(error)
    return found, failed


def _versions(pythons: Mapping[str, Path]) -> dict[str, str]:
    own = {name: version(name) for name in ("grpcio", "protobuf")}
    theirs = {
        f"{name}'s {package}": number
        for name, python in pythons.items()
        for package, number in peers.versions(python).items()
    }
    return own | theirs


def _torchrec(original: Artifact, calls: Calls) -> np.ndarray:
    batch = calls.batch(calls.whole[0])
    with torch.inference_mode():
        scores: Any = torch.sigmoid(original.model().eval()(batch.dense, batch.sparse))
    return scores.view(-1).numpy()


def _check(method: str, answer: bytes, wanted: np.ndarray, close: float) -> None:
    """Raises NotServing where a server gives other scores."""
    off = np.abs(made.scores_of(method, answer) - wanted).max()
    if not off <= close:
        raise NotServing(f"its scores are off by {off:.2g}")


def _rows(size: str) -> int:
    return int(size.rpartition(" ")[2])


def _median(rounds: list[Figures]) -> Figures:
    """Each figure's median over rounds; statuses of calls that were not served are added up."""
    first = rounds[0]
    if not isinstance(first, dict):
        return median(rounds)
    keys = dict.fromkeys(key for one in rounds for key in one)
    return {
        key: sum_of([one[key] for one in rounds if key in one])
        if key == "others"
        else _median([one[key] for one in rounds if key in one])
        for key in keys
    }


def sum_of(counts: list[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for one in counts for name in one)
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def _best(found: Figures, name: str, size: str, of: str) -> float:
    """A figure with as many calls in flight as are best."""
    if name == IN_PROCESS:
        return float(found[name][size][of])
    return max(one.get(of, 0.0) for one in found[name][size].values())


def _aims(found: Figures) -> Figures:
    """What the server is to reach, and what it did: rows a second, and the same of CPU time, which
    other processes of the machine count less in."""
    movies = found[f"{OURS} {MOVIES}"]["64"]
    reached: Figures = {
        "cpu_us_per_call": min(one.get("cpu_us_per_call", np.inf) for one in movies.values())
    }
    for of in ("rows_per_second", "rows_per_cpu_second"):
        reached[of] = {
            f"times {name}": {
                size: _best(found, OURS, size, of) / _best(found, name, size, of) for size in SIZES
            }
            for name in (IN_PROCESS, *peers.PACKAGES)
            if name in found
        }
    return {"wanted": AIMS, "reached": reached}


def _render(found: Figures) -> Table:
    table = Table("server", "rows", "in flight", title="one core, load from another")
    for column in ("calls/s", "rows/s", "p50 ms", "p99 ms", "CPU us a call"):
        table.add_column(column, justify="right")
    for name, sizes in found.items():
        for size, of in sizes.items():
            for count, one in {"": of}.items() if name == IN_PROCESS else of.items():
                told = (format(one[key], spec) if key in one else "" for key, spec in TOLD.items())
                table.add_row(peers.NAMES.get(name, name), size, count, *told)
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--against", nargs="*", choices=list(peers.PACKAGES), help="peers")
    options.set_defaults(against=list(peers.PACKAGES))
    options.add_argument("--seconds", type=float, default=5.0, help="measured per point and round")
    options.add_argument("--warm-up", type=float, default=1.0, help="seconds before that")
    options.add_argument("--rounds", type=int, default=3, help="turns of each server")
    options.add_argument("--set", action="append", default=[], help="a setting of the trainer")
    options.add_argument("--serve", type=str.split, default=[], help="more for embedcomp serve")
    options.add_argument("--model", type=Path, help="original on kuairand that is there")
    options.add_argument("--artifact", type=Path, help="and what is served of it")
    options.add_argument("--movies", type=Path, help="what is served of movielens_1m")
    options.add_argument("--peers", type=Path, default=child.ROOT / "build" / "serving_peers")
    options.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
