"""A model deployed on two hosts, and what calls notice when shards, a host and the link fail.

The hosts are network namespaces with a switch between them, which takes root: `ray start` in each,
`embedcomp deploy` in the first, and calls from there without a pause. Hosts share this machine's
cores, so seconds and milliseconds are upper bounds.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from benchmarks import result
from benchmarks.child import ROOT
from benchmarks.script import command, console, parser
from embedcomp.errors import EmbedcompError

NETWORK, PORT, FRONT = "10.77.0", 6379, 50051
NAMES = ("embedcomp-host-1", "embedcomp-host-2")
SWITCH = "embedcomp-switch"
HEALTH = json.dumps(
    {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 3,
    }
)
TRIES = 4
WHOLE_S = 180.0  # in which all is to answer again
QUIET_S = 2.0  # of calls after what is done
NOTICED_S = 8.0  # in which Ray has noticed that a host cannot be reached


def reason_not_to() -> str:
    """Why this machine cannot have such hosts; empty: it can."""
    if os.geteuid() or shutil.which("ip") is None:
        return "network namespaces take root and `ip`"
    tried = subprocess.run(
        ["ip", "netns", "add", f"{SWITCH}-tried"], capture_output=True, check=False
    )
    if tried.returncode:
        return f"ip netns add: {tried.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", f"{SWITCH}-tried"], check=True)
    return ""


class Hosts:
    """Two hosts of a Ray cluster; the first is its head."""

    def __init__(self, folder: Path):
        self._watching, self._stack = ExitStack(), ExitStack()
        # Paths of sockets have at most 107 letters, which folders of tests use up.
        self._sockets = self._stack.enter_context(TemporaryDirectory(prefix="ray"))
        self._watch: Connection | None = None
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",
            "RAY_worker_register_timeout_seconds": "600",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Hosts:
        for name in (SWITCH, *NAMES):
            _ip("netns", "add", name)
        _ip("-n", SWITCH, "link", "add", "switch", "type", "bridge")
        _ip("-n", SWITCH, "link", "set", "switch", "up")
        for number, name in enumerate(NAMES, 1):
            port = f"port{number}"
            pair = ("link", "add", "wire", "netns", name, "type", "veth", "peer", "name", port)
            _ip(*pair, "netns", SWITCH)
            _ip("-n", SWITCH, "link", "set", port, "master", "switch", "up")
            _ip("-n", name, "address", "add", f"{NETWORK}.{number}/24", "dev", "wire")
            for link in ("lo", "wire"):
                _ip("-n", name, "link", "set", link, "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        for name in NAMES:
            self.kill(name)
        self._stack.close()
        for name in (SWITCH, *NAMES):
            _ip("netns", "del", name)

    def run(self, name: str, *words: str) -> str:
        """What a command prints on a host."""
        done = subprocess.run(
            ["ip", "netns", "exec", name, *words],
            env=self._environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise EmbedcompError(f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        return done.stdout

    def start(self, name: str) -> None:
        """Start Ray."""
        number = NAMES.index(name) + 1
        which = ["--head", f"--port={PORT}", f"--temp-dir={self._sockets}", "--system-config"]
        first = [*which, HEALTH, "--include-dashboard=false"]
        ray = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"),
            *(f"--node-ip-address={NETWORK}.{number}", "--num-cpus=4"),
            f"--object-store-memory={80 << 20}",
            *(first if number == 1 else [f"--address={NETWORK}.1:{PORT}"]),
        ]
        for tries_left in reversed(range(TRIES)):  # Ray gives up after 30 s, on busy cores too soon
            try:
                self.run(name, *ray)
            except EmbedcompError:
                self.kill(name)
                if not tries_left:
                    raise
            else:
                return

    def kill(self, name: str) -> None:
        """End all processes of a host at once."""
        listed = ["ip", "netns", "pids", name]
        found = subprocess.run(listed, capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def link(self, up: bool) -> None:
        """Cut the second host's link at the switch, or mend it."""
        _ip("-n", SWITCH, "link", "set", "port2", "up" if up else "down")

    def deploy(self, *words: str) -> str:
        """What `embedcomp deploy` prints."""
        deploy = [sys.executable, "-m", "embedcomp", "deploy", *words]
        return self.run(NAMES[0], *deploy, "--address", f"{NETWORK}.1:{PORT}")

    def status(self) -> list[dict[str, Any]]:
        """What `embedcomp deploy status` tells, from a process that is there already."""
        if self._watch is None:
            self._watch = self._watching.enter_context(_inside(_watch, NAMES[0], self._environment))
        self._watch.send("status")
        found: list[dict[str, Any]] = self._watch.recv()
        return found


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Seen:
    """What calls saw during one stage."""

    calls: int = 0
    wrong: int = 0
    failed: int = 0
    why: str = ""
    versions: set[int] = field(default_factory=set)
    slowest_ms: float = 0.0


@contextmanager
def _inside(run: Callable[..., None], name: str, *given: Any) -> Iterator[Connection]:
    """A process on a host; gives the way to it, by which None ends it."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=run, args=(theirs, name, *given), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        with suppress(OSError):
            ours.send(None)
        process.join(30)


def _enter(name: str) -> None:
    """Go to a host, with a process that has no threads yet."""
    with open(f"/run/netns/{name}") as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0


def _watch(link: Connection, name: str, environment: dict[str, str]) -> None:
    """Tell what is deployed whenever asked."""
    os.environ.update(environment)
    _enter(name)
    from embedcomp.pipelines.cluster import joined
    from embedcomp.pipelines.deploying import deployment
    from embedcomp.pipelines.deploying.names import NAMESPACE

    with joined(f"{NETWORK}.1:{PORT}", NAMESPACE):
        while link.recv() is not None:
            link.send(deployment.status(None)["servers"])


def _call(link: Connection, name: str, target: str, rows: bytes, wanted: dict[int, Any]) -> None:
    """Call a front of a host until told to stop; tell what was seen whenever asked."""
    _enter(name)
    from embedcomp.client import Client

    given = pa.ipc.open_stream(rows).read_next_batch()
    seen = Seen()
    with Client(target) as client:
        while True:
            if link.poll():
                if link.recv() is None:
                    return
                link.send(seen)
                seen = Seen()
            began = time.perf_counter()
            try:
                scores = client.predict(given, timeout_s=5.0)
            except EmbedcompError as error:
                seen.failed, seen.why = seen.failed + 1, str(error)
            else:
                equal = [v for v, of in wanted.items() if np.array_equal(of, scores)]
                seen.versions.update(equal)
                seen.wrong += not equal
            seen.calls += 1
            seen.slowest_ms = max(seen.slowest_ms, 1000 * (time.perf_counter() - began))


@contextmanager
def calling(
    name: str, target: str, given: pa.RecordBatch, wanted: dict[int, np.ndarray]
) -> Iterator[Callable[[], Seen]]:
    """Calls without a pause; gives what tells what they saw since it was last asked."""
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, given.schema) as stream:
            stream.write_batch(given)
        rows = sink.getvalue().to_pybytes()
    with _inside(_call, name, target, rows, wanted) as link:

        def seen() -> Seen:
            link.send("seen")
            found: Seen = link.recv()
            return found

        seen()
        yield seen


class Story:
    """Two shards with a replica on each of two hosts, and what calls see of what is done to them.

    Args:
        model: folder of a model that is cut.
        new_version: adds its version 2.
        given, wanted: rows, and their scores by version.

    Attributes:
        stages: what calls saw, and the seconds until all was whole again.
    """

    def __init__(
        self,
        hosts: Hosts,
        model: Path,
        new_version: Callable[[], None],
        given: pa.RecordBatch,
        wanted: dict[int, np.ndarray],
        deadline_ms: float,
    ):
        self._hosts, self._model, self._new_version = hosts, model, new_version
        self._given, self._wanted = given, wanted
        self._flags = [
            *("--replicas", "2", "--fronts", "2", "--cpus", "0.25", "--insecure"),
            *("--shard-deadline-ms", f"{deadline_ms:g}", "--poll-seconds", "0.5"),
            *("--grace-s", "1", "--port", str(FRONT)),
        ]
        self._shards = 2
        self.stages: list[dict[str, Any]] = []

    def tell(self) -> None:
        """All of it, one after the other."""
        began = time.monotonic()
        for name in NAMES:
            self._hosts.start(name)
        started_s = time.monotonic() - began
        began = time.monotonic()
        self._deploy(2)
        deployed_s = time.monotonic() - began
        spread = {(one["what"].split(",")[0], one["host"]) for one in self._hosts.status()}
        assert len(spread) == 6, f"replicas and fronts are on both hosts, but: {spread}"
        with self._calling(2) as seen:
            self._stage("nothing, from the other host", seen)
        with self._calling(1) as seen:
            self._stage("nothing", seen)
            self.stages[-1] |= {"started_s": started_s, "deployed_s": deployed_s}
            self._stage("a shard is killed", seen, self._kill_a_shard)
            self._stage("a shard is added", seen, lambda: self._deploy(3))
            self._stage("a version is swapped", seen, self._swap)
            self._hosts.kill(NAMES[1])
            self._stage("a host is killed", seen)
            self._stage("the host is back", seen, lambda: self._hosts.start(NAMES[1]))
            self._hosts.link(up=False)
            time.sleep(NOTICED_S)
            self._stage("the link is cut", seen)
            self._stage("the link is mended and the host back", seen, self._mend)
        self._hosts.deploy("down")

    def _calling(self, number: int) -> Any:
        target = f"{NETWORK}.{number}:{FRONT}"
        return calling(NAMES[0], target, self._given, self._wanted)

    def _stage(
        self, name: str, seen: Callable[[], Seen], done: Callable[[], None] | None = None
    ) -> None:
        whole_s = None
        if done is not None:
            began = time.monotonic()
            done()
            self._wait()
            whole_s = time.monotonic() - began
        time.sleep(QUIET_S)
        found = seen()
        told = {**vars(found), "versions": sorted(found.versions)}
        self.stages.append({"stage": name, "whole_s": whole_s, **told})

    def _wait(self) -> None:
        """Wait until every replica of every shard answers, and the fronts."""
        until = time.monotonic() + WHOLE_S
        while True:
            there = self._hosts.status()
            if len(there) == 2 * self._shards + 2 and all(one["alive"] for one in there):
                return
            if time.monotonic() > until:
                raise EmbedcompError(f"not whole after {WHOLE_S:.0f} s: {there}")

    def _deploy(self, shards: int) -> None:
        self._shards = shards
        self._hosts.deploy(str(self._model), "--shards", str(shards), *self._flags)

    def _kill_a_shard(self) -> None:
        which = "shard 0/2, replica 0"
        before = self._pid(which)
        os.kill(before, signal.SIGKILL)
        while self._pid(which) in (before, None):
            pass

    def _pid(self, what: str) -> Any:
        return next(one["pid"] for one in self._hosts.status() if one["what"] == what)

    def _swap(self) -> None:
        self._new_version()
        until = time.monotonic() + WHOLE_S
        while any(one["versions"][:1] != [2] for one in self._hosts.status()):
            assert time.monotonic() < until, "the version is not swapped in"

    def _mend(self) -> None:
        self._hosts.link(up=True)
        self._hosts.kill(NAMES[1])  # Ray has given it up, and takes it as a new one
        self._hosts.start(NAMES[1])


def made_up(folder: Path) -> tuple[Path, Callable[[], None], pa.RecordBatch, dict[int, np.ndarray]]:
    """What `scenario` takes: a model that is cut, its next version, rows and their scores."""
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.scorer.scorer import Scorer
    from embedcomp.sharding.cut import cut
    from tests.serving.toy_scorer import save_small
    from tests.sharding.test_wire import FEATURES, columns

    wholes = [
        Artifact.open(save_small(folder / "whole" / str(seed), seed, FEATURES, compiled=True))
        for seed in (1, 2)
    ]
    model = cut(wholes[0], folder / "clicks", near_bytes=0).folder.parent
    given = pa.RecordBatch.from_pydict(columns(64))
    wanted = {version: Scorer(one).score(given) for version, one in enumerate(wholes, 1)}

    def new_version() -> None:
        cut(wholes[1], model, near_bytes=0)

    return model, new_version, given, wanted


def main() -> None:
    options = parser(__doc__, data=False)
    options.add_argument("--deadline-ms", type=float, default=30.0, help="of a call's rows")
    given = options.parse_args()
    if reason := reason_not_to():
        raise EmbedcompError(f"two hosts cannot be had on this machine: {reason}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="hosts-")))
        prepared = made_up(folder)
        hosts = stack.enter_context(Hosts(folder))
        busy = os.getloadavg()[0]
        story = Story(hosts, *prepared, given.deadline_ms)
        story.tell()
    console.print(_render(story.stages))
    file = result.write(
        "hosts",
        data={"made_up": True},
        settings={"deadline_ms": given.deadline_ms},
        seeds=[0],
        results={"busy_before": busy, "stages": story.stages},
        folder=given.results,
    )
    print(file)


def _render(stages: list[dict[str, Any]]) -> Table:
    table = Table("what happens", "calls", "wrong", "failed", "slowest ms", "whole again after s")
    for one in stages:
        whole = "" if one["whole_s"] is None else f"{one['whole_s']:.1f}"
        numbers = [f"{one[name]:,}" for name in ("calls", "wrong", "failed")]
        table.add_row(one["stage"], *numbers, f"{one['slowest_ms']:.1f}", whole)
    return table


if __name__ == "__main__":
    command(main)
