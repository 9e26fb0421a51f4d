"""A model deployed on Ray: what is scored, what comes back, what moves, what is refused."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from embedcomp.artifact.artifact import Artifact
from embedcomp.cli.main import app
from embedcomp.client import Client
from embedcomp.errors import EmbedcompError
from embedcomp.kernels import native
from embedcomp.pipelines.deploying import deployment
from embedcomp.scorer.scorer import Scorer
from tests.serving.toy_scorer import save_small
from tests.sharding.cases import cut
from tests.sharding.test_wire import FEATURES, columns

pytestmark = [
    pytest.mark.ray,
    pytest.mark.server,
    pytest.mark.skipif(native.library() is None, reason="the engine was not compiled"),
]
LONG_S = 120.0
FLAGS = [
    "--host",
    "127.0.0.1",
    "--port",
    "0",
    "--cpus",
    "0.1",
    "--grace-s",
    "1",
    "--poll-seconds",
    "0.3",
]
FLAGS += ["--metrics-port", "0", "--shard-deadline-ms", "2000"]


def command(*words: object) -> str:
    """What `embedcomp deploy` prints; its mistakes are raised."""
    given = [str(word) for word in words]
    address = [] if "--address" in given else ["--address", "127.0.0.1:1"]  # Ray runs in here
    done = CliRunner().invoke(app, ["deploy", *given, *address])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def servers() -> list[dict[str, Any]]:
    return deployment.status(None)["servers"]


def shards() -> list[dict[str, Any]]:
    return [one for one in servers() if one["what"].startswith("shard")]


def front() -> str:
    (found,) = [one["address"] for one in servers() if one["what"] == "front 0"]
    return found


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


class Load:
    """Calls one after the other, until the block ends: what they scored, and how they failed."""

    def __init__(self, target: str, wanted: dict[int, np.ndarray]):
        self._target, self._wanted = target, wanted
        self.right = dict.fromkeys(wanted, 0)
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        given = pa.RecordBatch.from_pydict(columns(50))
        with Client(self._target) as client:
            while not self._over.is_set():
                try:
                    scores = client.predict(given)
                except EmbedcompError as error:
                    self.wrong.append(str(error))
                    continue
                version = next(
                    (v for v, of in self._wanted.items() if np.array_equal(scores, of)), None
                )
                if version is None:
                    self.wrong.append("other scores")
                else:
                    self.right[version] += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Artifact, Artifact]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    whole = Artifact.open(save_small(tmp_path / "whole", features=FEATURES, compiled=True))
    return whole, cut(whole, tmp_path / "clicks")


@pytest.fixture
def ended(cluster: str) -> Iterator[None]:
    """Nothing is deployed before and after."""
    yield
    if "clicks" in CliRunner().invoke(app, ["deploy", "status", "--address", "x:1"]).output:
        command("down")


def test_a_deployed_model_scores_as_one_process_whatever_becomes_of_its_shards(
    made: tuple[Artifact, Artifact], ended: None, tmp_path: Path
) -> None:
    whole, folder = made[0], made[1].folder.parent
    given = pa.RecordBatch.from_pydict(columns(50))
    second = Artifact.open(save_small(tmp_path / "new", 2, FEATURES, compiled=True))
    wanted = {version: Scorer(one).score(given) for version, one in ((1, whole), (2, second))}
    told = command(folder, "--shards", 2, "--replicas", 1, *FLAGS)
    assert f"front 0 serves clicks version 1 on {front()}" in told
    assert [one["slots"] for one in shards()] == ["0/2", "1/2"]
    assert all(one["alive"] and one["versions"] == [1] for one in servers())
    command("status", "clicks", "--json", tmp_path / "status.json")
    assert json.loads((tmp_path / "status.json").read_text())["servers"] == servers()
    with Client(front()) as client:
        np.testing.assert_array_equal(client.predict(given), wanted[1])
        for one in shards():
            with urlopen(f"http://{one['metrics']}/metrics") as metrics:
                assert 'embedcomp_shard_requests_total{code="ok"} ' in metrics.read().decode()

        killed = shards()[1]
        os.kill(killed["pid"], signal.SIGKILL)

        def answers() -> bool:
            try:
                return np.array_equal(client.predict(given), wanted[1])
            except EmbedcompError:
                return False

        eventually(lambda: shards()[1]["pid"] not in (killed["pid"], None) and answers())
        with pytest.raises(EmbedcompError, match="is deployed already, with 2 shards and 1"):
            command(folder, *FLAGS)
        with pytest.raises(EmbedcompError, match="deployed with another calls, 64; give the same"):
            command(folder, "--shards", 3, "--calls", 7, *FLAGS)

        with Load(front(), wanted) as load:
            before = {one["address"] for one in shards()}
            command(folder, "--shards", 3, *FLAGS)
            assert [one["slots"] for one in shards()] == ["0/3", "1/3", "2/3"]
            assert not before & {one["address"] for one in shards()}
            assert not load.right[2]
            cut(second, folder)
            eventually(lambda: load.right[2] > 0)
        assert not load.wrong
        assert all(load.right.values())
        assert servers()[0]["versions"] == [2, 1]
        assert all(one["versions"][0] == 2 for one in shards())
    addresses = [one["address"] for one in servers()]
    assert "clicks is down: 4 shards and fronts have ended" in command("down")
    assert not any(deployment._answers(address) for address in addresses)
    with pytest.raises(EmbedcompError, match="nothing is deployed on this cluster"):
        command("status")


def test_what_cannot_be_deployed_is_told_and_leaves_nothing(
    made: tuple[Artifact, Artifact], ended: None, tmp_path: Path
) -> None:
    whole, folder = made[0].folder, made[1].folder.parent
    with pytest.raises(EmbedcompError, match=r"is whole, and shards hold slots; cut it first: emb"):
        command(whole, *FLAGS)
    with pytest.raises(EmbedcompError, match="absent is not a model or artifact"):
        command(tmp_path / "absent", *FLAGS)
    with pytest.raises(EmbedcompError, match="answers everyone in plain text; give --tls-cert"):
        command(folder, "--cpus", 0.1)
    with pytest.raises(EmbedcompError, match=r"no host of the cluster has 99 CPUs"):
        command(folder, *FLAGS, "--cpus", 99)
    with pytest.raises(EmbedcompError, match="fronts is 2, but Ray has 1 hosts"):
        command(folder, *FLAGS, "--fronts", 2, "--port", 50051)
    slots = made[1].folder / "slots" / "009.safetensors"
    slots.write_bytes(slots.read_bytes()[:-1] + b"?")
    with pytest.raises(EmbedcompError, match=r"shard 1/2.*009.safetensors is not the file that"):
        command(folder, *FLAGS)
    with pytest.raises(EmbedcompError, match="nothing is deployed on this cluster"):
        command("status")


def test_replicas_share_a_host_where_there_is_one_and_look_up_as_they_are_told(
    made: tuple[Artifact, Artifact], ended: None
) -> None:
    lookups = ["--lookups", "fbgemm"]
    told = command(made[1].folder, "--shards", 1, "--replicas", 2, *FLAGS, *lookups)
    assert "Ray has 1 hosts" in told and "several of the 2 replicas" in told
    assert [one["what"] for one in shards()] == [
        f"shard 0/1, replica {replica}" for replica in range(2)
    ]
    given = pa.RecordBatch.from_pydict(columns(50))
    with Client(front()) as client:
        np.testing.assert_allclose(client.predict(given), Scorer(made[0]).score(given), 1e-5)
