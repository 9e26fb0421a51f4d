"""Shards as processes of their own, and a front as the server that clients call."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pyarrow as pa
import pytest

from embedcomp.artifact.artifact import Artifact
from embedcomp.errors import BadArtifact, BadSettings
from embedcomp.kernels import native
from embedcomp.log.features import Features, IdFeature
from embedcomp.log.vocabulary import Vocabulary
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.client import Client
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.errors import Refused
from embedcomp.serving.models import READY
from embedcomp.serving.repository import Repository
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.rows import ShardsDown, finds
from embedcomp.serving.shards.server import Versions
from tests.serving.toy_scorer import save_small
from tests.sharding.cases import cut

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(native.library() is None, reason="the engine was not compiled"),
]
ITEMS = 400
SIDES = {"user": "user", "item": "item", "tags": "item"}
FEATURES = Features(
    ids=tuple(
        IdFeature(
            name,
            side,
            name == "tags",
            Vocabulary(pa.array(range(ITEMS)), np.ones(ITEMS + 2, np.int64)),
        )
        for name, side in SIDES.items()
    ),
    dense=(),
)
Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a shard of some slots; its address."""
    running: list[subprocess.Popen[str]] = []

    def started(folder: Path, slots: str, port: int = 0) -> str:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "embedcomp", "shard", str(folder)),
                *("--slots", slots, "--port", str(port)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        running.append(process)
        started.processes = running  # type: ignore[attr-defined]
        assert process.stdout is not None
        found = re.search(r" on (127.0.0.1:\d+)$", process.stdout.readline().strip())
        assert found is not None
        return found[1]

    yield started
    for process in running:
        process.terminate()
    for process in running:
        assert process.wait(30) in (0, -9)


def columns(rows: int, seed: int = 0) -> dict[str, pa.Array]:
    random = np.random.default_rng(seed)
    tags = [random.integers(0, ITEMS + 20, n).tolist() for n in random.integers(0, 4, rows)]
    return {
        "user": pa.array(random.integers(0, ITEMS + 20, rows)),
        "item": pa.array(random.integers(0, ITEMS + 20, rows)),
        "tags": pa.array(tags, pa.list_(pa.int64())),
    }


def eventually(score: Callable[[], np.ndarray]) -> np.ndarray:
    """Scores, as soon as shards that were away are back."""
    until = time.monotonic() + 60
    while True:
        try:
            return score()
        except Refused:
            assert time.monotonic() < until, "the shard is not found again"
            time.sleep(0.05)


def settings_of(*shards: str, down: str = "fail") -> ServerSettings:
    return ServerSettings(
        port=0, metrics_port=0, shards=shards, shard_down=down, shard_deadline_ms=2000, grace_s=0
    )


@pytest.fixture
def clicks(tmp_path: Path) -> tuple[Artifact, Artifact]:
    whole = Artifact.open(save_small(tmp_path / "whole", features=FEATURES, compiled=True))
    return whole, cut(whole, tmp_path / "clicks")


def test_a_front_scores_as_one_process_until_a_shard_is_gone(
    clicks: tuple[Artifact, Artifact], start: Start
) -> None:
    whole, made = clicks
    shards = [start(made.folder.parent, f"{shard}/2") for shard in range(2)]
    settings, one = settings_of(*shards, down="default"), Scorer(whole)
    opened = lambda path: Scorer.open(path, shards=finds(settings))  # noqa: E731
    failing = Scorer(made, shards=finds(settings_of(*shards)))
    given = pa.RecordBatch.from_pydict(columns(50))
    np.testing.assert_allclose(failing.score(given), one.score(given), rtol=0, atol=1e-6)
    user, rest = given.select(["user"]).slice(3, 1), given.select(["item", "tags"])
    np.testing.assert_allclose(failing.score(rest, user), one.score(rest, user), rtol=0, atol=1e-6)
    repository = Repository([made.folder.parent], settings, opened)
    with ScoringServer(repository.models, settings, repository) as server:
        with Client(f"127.0.0.1:{server.port}") as client:
            found = client.predict(given)
            np.testing.assert_allclose(found, one.score(given), rtol=0, atol=1e-6)
            gone = start.processes[1]  # type: ignore[attr-defined]
            gone.kill()
            gone.wait(30)
            found = client.predict(given)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            message = to_request(given).SerializeToString()
            _, done = channel.unary_unary(f"/{SERVICE}/Predict").with_call(message)
            told_ids = int(dict(done.trailing_metadata())["x-defaulted-ids"])
        lost = range(1, ITEMS, 2)  # rows are two further on, or none, so they are odd likewise
        without = {
            name: pa.array(
                [
                    [ITEMS + 1 if i in lost else i for i in v] if name == "tags"
                    else ITEMS + 1 if v in lost else v
                    for v in column.to_pylist()
                ],
                column.type,
            )
            for name, column in columns(50).items()
        }  # fmt: skip
        wanted = one.score(pa.RecordBatch.from_pydict(without))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        assert np.abs(found - one.score(given)).max() > 1e-5
        of_columns = columns(50)
        several = sum(sum(i in lost for i in of) for of in of_columns["tags"].to_pylist())
        number = several + sum(
            v in lost for name in ("user", "item") for v in of_columns[name].to_pylist()
        )
        assert told_ids == number
        with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as told:
            line = f'embedcomp_defaulted_ids_total{{model="clicks",version="1"}} {2 * number}.0'
            assert line in told.read().decode()
    with pytest.raises(ShardsDown, match=r"slots 1/2 cannot be read: shard 127.0.0.1:\d+ is down"):
        failing.score(given)
    again = start(made.folder.parent, "1/2", int(shards[1].rpartition(":")[2]))
    assert again == shards[1]
    back = eventually(lambda: failing.score(given))
    np.testing.assert_allclose(back, one.score(given), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_replica_answers_where_a_shard_is_gone(
    clicks: tuple[Artifact, Artifact], start: Start
) -> None:
    whole, made = clicks
    shards = [start(made.folder, "0-255") for _ in range(2)]
    front = Scorer(made, shards=finds(settings_of(*shards)))
    start.processes[0].kill()  # type: ignore[attr-defined]
    given = pa.RecordBatch.from_pydict(columns(20))
    for _ in range(4):
        np.testing.assert_allclose(
            front.score(given), Scorer(whole).score(given), rtol=0, atol=1e-6
        )


@pytest.mark.slow
def test_a_shard_that_hangs_is_given_up_and_found_again(
    clicks: tuple[Artifact, Artifact], start: Start
) -> None:
    whole, made = clicks
    shard = start(made.folder, "0-255")
    hurried = ServerSettings(shards=(shard,), shard_deadline_ms=300)
    front = Scorer(made, shards=finds(hurried))
    given = pa.RecordBatch.from_pydict(columns(20))
    process = start.processes[0]  # type: ignore[attr-defined]
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
        time.sleep(0.001)  # its threads stop one after another
    with pytest.raises(ShardsDown, match="it did not answer in time"):
        front.score(given)
    process.send_signal(signal.SIGCONT)
    found = eventually(lambda: front.score(given))
    np.testing.assert_allclose(found, Scorer(whole).score(given), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_new_version_is_loaded_by_shards_before_it_is_served(
    clicks: tuple[Artifact, Artifact], start: Start, tmp_path: Path
) -> None:
    _, made = clicks
    shard = start(made.folder.parent, "0-255")
    settings = settings_of(shard)
    opened = lambda path: Scorer.open(path, shards=finds(settings))  # noqa: E731
    repository = Repository([made.folder.parent], settings, opened)
    second = Artifact.open(save_small(tmp_path / "new", 2, FEATURES, compiled=True))
    cut(second, made.folder.parent)
    repository.load("clicks")
    given = pa.RecordBatch.from_pydict(columns(20))
    for version, whole in ((1, clicks[0]), (2, second)):
        found = repository.models.find("clicks", version).scorer.score(given)
        np.testing.assert_allclose(found, Scorer(whole).score(given), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_what_shards_do_not_have_is_told_at_the_start(
    clicks: tuple[Artifact, Artifact], start: Start, tmp_path: Path
) -> None:
    _, made = clicks
    half = start(made.folder, "0-127")
    with pytest.raises(BadSettings, match="slots 128-255 are of no shard that answers"):
        Scorer(made, shards=finds(settings_of(half)))
    with pytest.raises(BadSettings, match=r"of no shard that answers.*shard 127.0.0.1:1: "):
        Scorer(made, shards=finds(settings_of(half, "127.0.0.1:1")))
    more = start(made.folder, "100-255")
    with pytest.raises(BadSettings, match=r"slot 100 is of .* replicas hold the same slots"):
        Scorer(made, shards=finds(settings_of(half, more)))
    other = Artifact.open(save_small(tmp_path / "new", 2, FEATURES, compiled=True))
    elsewhere = cut(other, tmp_path / "elsewhere" / "clicks")
    with pytest.raises(BadSettings, match="but not as it was cut for this front"):
        Scorer(elsewhere, shards=finds(settings_of(half)))


@pytest.mark.slow
def test_a_shard_that_was_started_elsewhere_is_found(
    clicks: tuple[Artifact, Artifact], start: Start
) -> None:
    whole, made = clicks
    address = start(made.folder, "0-255")
    front = Scorer(made, shards=finds(settings_of(), [lambda: address]))
    given = pa.RecordBatch.from_pydict(columns(20))
    wanted = Scorer(whole).score(given)
    np.testing.assert_array_equal(front.score(given), wanted)
    start.processes[0].kill()  # type: ignore[attr-defined]
    with pytest.raises(ShardsDown):
        front.score(given)
    before, address = address, start(made.folder, "0-255")
    assert before != address
    np.testing.assert_array_equal(eventually(lambda: front.score(given)), wanted)


@pytest.mark.slow
def test_a_front_goes_over_to_other_shards_while_it_serves(
    clicks: tuple[Artifact, Artifact], start: Start
) -> None:
    whole, made = clicks
    places = [start(made.folder.parent, "0-255")]
    settings = settings_of()

    def opened(path: Path) -> Scorer:
        return Scorer.open(path, shards=finds(settings, [partial(str, one) for one in places]))

    repository = Repository([made.folder.parent], settings, opened)
    before = repository.models.find("clicks")
    given = pa.RecordBatch.from_pydict(columns(20))
    places[:] = [start(made.folder.parent, f"{shard}/2") for shard in range(2)]
    repository.reopen()
    start.processes[0].kill()  # type: ignore[attr-defined]
    after = repository.models.find("clicks")
    assert after is not before and repository.models.loaded() == [after]
    np.testing.assert_array_equal(after.scorer.score(given), Scorer(whole).score(given))
    places[:] = ["127.0.0.1:1"]
    with pytest.raises(BadSettings, match="of no shard that answers"):
        repository.reopen()
    assert repository.models.find("clicks") is after
    assert repository.models.states()[0].state == READY


def test_a_damaged_version_does_not_keep_a_shard_from_coming_back(
    clicks: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    _, made = clicks
    second = Artifact.open(save_small(tmp_path / "new", 2, FEATURES, compiled=True))
    slots = cut(second, made.folder.parent).folder / "slots" / "000.safetensors"
    assert list(Versions(made.folder.parent, [0]).loaded) == [2]
    slots.write_bytes(b"?")
    assert list(Versions(made.folder.parent, [0]).loaded) == [1]
    with pytest.raises(BadArtifact, match="its checksum differs"):
        Versions(slots.parents[1], [0])


@pytest.mark.slow
def test_workers_of_one_server_ask_the_same_shards(
    clicks: tuple[Artifact, Artifact], start: Start
) -> None:
    whole, made = clicks
    shards = [start(made.folder, f"{shard}/2") for shard in range(2)]
    serve = [
        *(sys.executable, "-m", "embedcomp", "serve", str(made.folder), "--port", "0"),
        *("--workers", "2", "--shards", ",".join(shards), "--shard-deadline-ms", "5000"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        serve, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            found = re.search(r" on (127.0.0.1:\d+)$", server.stdout.readline().strip())
            assert found is not None
            given = pa.RecordBatch.from_pydict(columns(20))
            wanted = Scorer(whole).score(given)
            for _ in range(8):  # connections, which the kernel spreads over the workers
                with Client(found[1]) as client:
                    np.testing.assert_allclose(client.predict(given), wanted, rtol=0, atol=1e-6)
        finally:
            server.terminate()
