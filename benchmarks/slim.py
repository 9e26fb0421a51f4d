"""What the serving image holds, how soon it answers, and what its processes take.

    python -m benchmarks.slim

No container is built: an environment is made as docker/Dockerfile makes the one that it copies,
from the wheel with its engine and the `serve` extra alone. It serves a made-up artifact, or that of
`--artifact`. Starts are timed from the first one on, which makes the tables of known ids. Memory is
that of one server and of four: four workers of one server where it has them, else four servers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.table import Table

from benchmarks import result
from benchmarks.child import ROOT, ChildFailed, memory
from benchmarks.script import command, console, parser
from embedcomp.artifact import artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.features import DenseFeature, Features, IdFeature
from embedcomp.log.vocabulary import Vocabulary
from embedcomp.scorer.stand_alone import stand_alone_from_log
from embedcomp.serving.client import Client

LEFT = (".venv", ".git", "build", "*.egg-info", "__pycache__", ".*_cache", "demo_out", "*.so")
ABSENT = ("torch", "ray", "fbgemm_gpu", "torchrec", "scipy", "sklearn", "pandas")
IDS, FEATURES, WIDTH = 500_000, 4, 16  # ids of a feature; each has a table of float32
SERVERS, CONNECTIONS, CALLS, ROWS = (1, 4), 8, 20, 256  # calls of rows on a connection
WAIT_S, AGAIN_S = 120, 0.002
IMPORTED = """
import json, sys
from pathlib import Path
import embedcomp.cli.main
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving import server
from embedcomp.serving.repository import Repository
from embedcomp.serving.settings import ServerSettings
Repository([Path(sys.argv[1])], ServerSettings(), Scorer.open)
print(json.dumps([m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]))
"""


def main() -> None:
    options = _options()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        served = options.artifact or made_up(folder / "clicks", options.ids)
        environment = folder / "environment"
        install(environment, f"{wheel(folder)}[serve]")
        found = {
            "packages": packages(environment, served),
            "starts": starts(environment, served, folder / "cache", options.rounds),
            "memory": [
                taken(environment, served, folder / "cache", count, options.ids, options.calls)
                for count in SERVERS
            ],
        }
        bytes_on_disk = _size(served.rglob("*"))
    console.print(_render(found))
    file = result.write(
        "slim",
        data={
            "made_up": options.artifact is None,
            "ids": options.ids,
            "features": FEATURES,
            "width": WIDTH,
            "artifact_bytes": bytes_on_disk,
        },
        settings={
            "rounds": options.rounds,
            "connections": CONNECTIONS,
            "calls": options.calls,
            "rows": ROWS,
            "threads": 1,
        },
        seeds=[0],
        results=found,
        folder=options.results,
    )
    print(file)


def wheel(folder: Path) -> Path:
    """The wheel of this tree, without what earlier builds left behind."""
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*LEFT))
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    (found,) = folder.glob("embedcomp-*.whl")
    return found


def install(environment: Path, what: str) -> None:
    """An environment as the image has it: without pip."""
    _run(sys.executable, "-m", "venv", "--without-pip", environment)
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    _run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", what)


def made_up(out: Path, ids: int) -> Path:
    """A version of an untrained DCN-V2 that scores by itself."""
    features = Features(
        ids=tuple(
            IdFeature(
                f"id_{n}", "item", False, Vocabulary(_ids(n, ids), np.ones(ids + 2, np.int64))
            )
            for n in range(FEATURES)
        ),
        dense=(DenseFeature("price", "item", "log1p", 1.0, 2.0),),
    )
    source = ModelSource(model="dcnv2", settings={"width": WIDTH, "hidden": (64, 32)}).complete()
    model = source.build(features, 0).eval()
    alone = stand_alone_from_log(model, features)
    kept = artifact.save(out, model, features=features, source=source, alone=alone, bytes={})
    return kept.folder


def _ids(feature: int, ids: int) -> pa.Array:
    return pa.array(np.random.default_rng(feature).permutation(10 * ids)[:ids])


def packages(environment: Path, served: Path) -> dict[str, Any]:
    """Bytes of the environment by package, the largest first, and whether serving imports it.

    Raises:
        ChildFailed: it has what serving does without.
    """
    (site,) = environment.glob("lib/python*/site-packages")
    there = [name for name in ABSENT if (site / name).exists()]
    if there:
        raise ChildFailed(f"the environment that serves has {', '.join(there)}")
    python = environment / "bin" / "python"
    cache = {"XDG_CACHE_HOME": str(environment.parent / "unused")}
    said = _run(python, "-c", IMPORTED, served, cwd=environment, **cache)
    imported = {Path(name) for name in json.loads(said)}
    rows = [_package(one, imported) for one in distributions(path=[str(site)])]
    return {
        "bytes": _size(environment.rglob("*")),
        "absent": ABSENT,
        "by_size": sorted(rows, key=lambda row: -row["bytes"]),
    }


def _package(one: Distribution, imported: set[Path]) -> dict[str, Any]:
    files = {Path(str(file.locate())) for file in one.files or ()}
    return {
        "name": one.metadata["Name"],
        "version": one.version,
        "bytes": _size(files),
        "imported": bool(files & imported),
    }


def _size(files: Iterator[Path] | set[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def starts(environment: Path, served: Path, cache: Path, rounds: int) -> dict[str, Any]:
    """Seconds from the start of the process until health says SERVING.

    first: with no tables of known ids on this machine; others: with those that the first made.
    """
    found = []
    for _ in range(1 + rounds):
        with _server(environment, served, cache) as (_, _, seconds):
            found.append(seconds)
    return {"first": found[0], "others": found[1:]}


def taken(
    environment: Path, served: Path, cache: Path, count: int, ids: int, calls: int
) -> dict[str, Any]:
    """Bytes that servers hold once they have answered calls.

    Proportional bytes share a page out among those that have it, so that their sum is what the
    machine holds.
    """
    workers = count > 1 and _has_workers(environment)
    more = ["--workers", str(count)] if workers else []
    with _servers(environment, served, cache, 1 if workers else count, more) as running:
        for _, port in running:
            _call(port, ids, calls)
        pids = [pid for process, _ in running for pid in _family(process.pid)]
        each = [memory(pid) for pid in pids]
    return {
        "servers": count,
        "workers": workers,
        "processes": len(each),
        "resident_bytes": [one["Rss"] for one in each],
        "own_bytes": [one["Private_Clean"] + one["Private_Dirty"] for one in each],
        "proportional_bytes": sum(one["Pss"] for one in each),
    }


def _has_workers(environment: Path) -> bool:
    return "--workers" in _run(environment / "bin" / "embedcomp", "serve", "--help", COLUMNS="200")


Running = tuple[subprocess.Popen[bytes], int]  # and its port


@contextmanager
def _servers(
    environment: Path, served: Path, cache: Path, count: int, more: Sequence[str]
) -> Iterator[list[Running]]:
    if not count:
        yield []
        return
    with (
        _server(environment, served, cache, more) as (process, port, _),
        _servers(environment, served, cache, count - 1, more) as others,
    ):
        yield [(process, port), *others]


@contextmanager
def _server(
    environment: Path, served: Path, cache: Path, more: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """A server on a free port of this machine, and after how many seconds it was ready."""
    port = _free_port()
    words = ["serve", str(served), "--port", str(port), *more]
    began = time.perf_counter()
    process = subprocess.Popen(
        [environment / "bin" / "embedcomp", *words],
        env=_clean(XDG_CACHE_HOME=str(cache)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield process, port, _ready(process, port) - began
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def _ready(process: subprocess.Popen[bytes], port: int) -> float:
    """The time at which health says SERVING.

    Raises:
        ChildFailed: the process ends, or does not say so for long.
    """
    until = time.perf_counter() + WAIT_S
    while time.perf_counter() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(AGAIN_S)
            continue
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = health_pb2_grpc.HealthStub(channel).Check
            said = ask(health_pb2.HealthCheckRequest(), timeout=WAIT_S, wait_for_ready=True)
        if said.status == health_pb2.HealthCheckResponse.SERVING:
            return time.perf_counter()
    process.terminate()
    said = process.communicate(timeout=60)[1].decode()
    raise ChildFailed(f"embedcomp serve was not ready in {WAIT_S} s: {' '.join(said.split())}")


def _call(port: int, ids: int, calls: int) -> None:
    """Rows with drawn ids, over several connections, which workers share among them."""
    rng = np.random.default_rng(0)
    for _ in range(CONNECTIONS):
        with Client(f"127.0.0.1:{port}") as client:
            features = [one.name for one in client.metadata().features]
            for _ in range(calls):
                drawn = {name: pa.array(rng.integers(10 * ids, size=ROWS)) for name in features}
                client.predict(pa.RecordBatch.from_pydict(drawn))


def _family(pid: int) -> list[int]:
    """A process and all that come from it."""
    found = [pid]
    for one in found:
        for file in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in file.read_text().split()]
    return found


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _run(*words: object, cwd: Path | None = None, **variables: str) -> str:
    """Standard output of a command.

    Raises:
        ChildFailed: it ended with another code than 0.
    """
    said = [str(word) for word in words]
    done = subprocess.run(
        said, cwd=cwd, env=_clean(**variables), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ChildFailed(f"{' '.join(said[:4])}: {' '.join(done.stderr[-2000:].split())}")
    return done.stdout.rstrip()


def _clean(**variables: str) -> dict[str, str]:
    """Without what would let this tree be imported, and one thread for numerical libraries."""
    kept = {name: of for name, of in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


def _render(found: dict[str, Any]) -> Table:
    held = found["packages"]
    first, others = found["starts"]["first"], median(found["starts"]["others"])
    title = (
        f"{held['bytes'] / 1e6:.0f} MB, ready after {others:.2f} s (the first time {first:.2f} s)"
    )
    table = Table("package", "MB", "imported", title=title)
    for one in held["by_size"]:
        table.add_row(one["name"], f"{one['bytes'] / 1e6:.1f}", "yes" if one["imported"] else "")
    table.add_section()
    for one in found["memory"]:
        total = f"{one['proportional_bytes'] / 1e6:.0f}"
        table.add_row(f"{one['servers']} servers in memory ({one['processes']} processes)", total)
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--artifact", type=Path, help="to serve; one is made up without it")
    options.add_argument("--ids", type=int, default=IDS, help="of a feature of the made-up one")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--calls", type=int, default=CALLS, help="on a connection")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
