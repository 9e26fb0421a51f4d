"""Several processes on one port: replaced when they die, changed together, stopped together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families
from toy_scorer import save_small

from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.client import Client
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.inference import SERVICE as INFERENCE
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.errors import CallFailed
from embedcomp.serving.wire import inference_pb2
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire
from embedcomp.serving.workers import IMPORTED, pause_s

pytestmark = pytest.mark.server
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
NOT_SENT = "failed to connect to all addresses"
MANY = 24  # connections, so that each of two workers has some


@dataclass
class Running:
    """A server of two workers, by its command."""

    process: subprocess.Popen[str]
    target: str
    metrics: str
    log: Path

    def workers(self) -> list[int]:
        """Their process ids."""
        parents = {
            int(folder.name): _parent(folder)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit()
        }
        forked = (parents.get(parent) for parent in parents.values())
        return sorted(p for p, g in zip(parents, forked, strict=True) if g == self.process.pid)

    def answers(self, message: bytes) -> list[wire.PredictResponse]:
        """What many connections are answered."""
        found = []
        for _ in range(MANY):
            with grpc.insecure_channel(self.target, options=OWN_CONNECTION) as channel:
                method = channel.unary_unary(
                    f"/{SERVICE}/Predict", response_deserializer=wire.PredictResponse.FromString
                )
                found.append(method(message, timeout=60, wait_for_ready=True))
        return found

    def value(self, name: str, **labels: str) -> float:
        """A metric, of all workers."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def _parent(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.1)


def command(*words: object) -> list[str]:
    given = [str(word) for word in words]
    return [sys.executable, "-m", "embedcomp.cli.main", "serve", *given, "--workers", "2"]


def refused(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("workers")
    for seed in (1, 2):
        save_small(home / "small", seed=seed)
    return home


@pytest.fixture
def running(home: Path, tmp_path: Path) -> Iterator[Running]:
    log = tmp_path / "log"
    options = ("--port", 0, "--metrics-port", 0, "--connection-s", 1, "--grace-s", 10)
    process = subprocess.Popen(
        command(home / "small", *options), stdout=subprocess.PIPE, stderr=log.open("w"), text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(4)]
    assert lines[-1] == ["2", "workers", "on", "one", "port"], log.read_text()
    found = Running(process, lines[0][-1], lines[2][-1], log)
    try:
        yield found
    finally:
        process.terminate()
        process.wait(30)


def message_of(items: pa.RecordBatch) -> bytes:
    return to_request(items).SerializeToString()


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_what_it_counted_stays(
    running: Running, home: Path, items: pa.RecordBatch
) -> None:
    wanted = Scorer.open(home / "small" / "2").score(items)
    before = running.workers()
    assert len(before) == 2
    for answer in running.answers(message_of(items)):
        assert np.array_equal(np.frombuffer(answer.scores, "<f4"), wanted)
    name, of = "embedcomp_scored_rows_total", {"model": "small", "version": "2"}
    until(lambda: running.value(name, **of) == MANY * items.num_rows)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(running.workers()) == 2 and before[0] not in running.workers())
    with Client(running.target) as client:  # its calls are sent again if a worker is not there yet
        assert np.array_equal(client.predict(items), wanted)
    until(lambda: running.value("embedcomp_worker_restarts_total") == 1)
    until(lambda: running.value(name, **of) == (MANY + 1) * items.num_rows)
    assert running.value("embedcomp_version_ready", **of) == 1
    assert f"worker {before[0]} ended (-9)" in running.log.read_text()


@pytest.mark.slow
def test_a_call_that_changes_versions_changes_them_everywhere(
    running: Running, items: pa.RecordBatch
) -> None:
    with grpc.insecure_channel(running.target) as channel:
        load = channel.unary_unary(
            f"/{INFERENCE}/RepositoryModelLoad",
            request_serializer=inference_pb2.RepositoryModelLoadRequest.SerializeToString,
        )
        request = inference_pb2.RepositoryModelLoadRequest(model_name="small")
        request.parameters["version"].int64_param = 1
        load(request, timeout=30)
    answers = running.answers(message_of(items))
    assert {answer.version for answer in answers} == {1}
    old = running.workers()
    for worker in old:  # gently: one that is replaced answers what it was sent
        os.kill(worker, signal.SIGTERM)
    until(lambda: len(set(running.workers()) - set(old)) == 2)
    assert {answer.version for answer in running.answers(message_of(items))} == {1}


@pytest.mark.slow
def test_all_end_together_on_sigterm(running: Running) -> None:
    workers = running.workers()
    running.process.terminate()
    assert running.process.wait(30) == 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(running: Running) -> None:
    workers = running.workers()
    running.process.kill()
    running.process.wait(10)
    until(lambda: not any(_runs(worker) for worker in workers))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_the_others_serve_on_where_a_worker_cannot_be_replaced(
    home: Path, tmp_path: Path, items: pa.RecordBatch
) -> None:
    shutil.copytree(home / "small" / "2", tmp_path / "gone" / "1")
    process = subprocess.Popen(
        command(tmp_path / "gone", "--port", 0),
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
    )
    assert process.stdout is not None
    target = process.stdout.readline().split()[-1]
    found = Running(process, target, "", tmp_path / "log")
    try:
        wanted = found.answers(message_of(items))[0].scores
        shutil.rmtree(tmp_path / "gone")
        first, _ = found.workers()
        os.kill(first, signal.SIGKILL)
        until(lambda: found.log.read_text().count("cannot serve") > 1)
        assert {answer.scores for answer in found.answers(message_of(items))} == {wanted}
        for worker in found.workers():
            os.kill(worker, signal.SIGKILL)
        assert process.wait(60) == 2
        assert "workers ended at once" in found.log.read_text()
    finally:
        process.kill()
        process.wait(10)


def test_what_workers_run_is_imported_before_they_are_forked() -> None:
    """What is not there is passed over without a word, and so would be names that went stale."""
    assert [name for name in IMPORTED if find_spec(name) is None] in ([], ["pandas"])


def test_workers_that_end_as_they_begin_are_replaced_later_and_later() -> None:
    assert [pause_s(times) for times in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.slow
def test_what_cannot_be_served_is_one_sentence(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "manifest.json").write_text("{")
    found = refused(tmp_path / "bad", "--port", 0)
    assert found.returncode == 2 and "error: " in found.stderr
    assert "Traceback" not in found.stderr, found.stderr


@pytest.mark.slow
def test_a_port_of_another_server_is_not_shared_with_it(running: Running, home: Path) -> None:
    port = running.target.rpartition(":")[2]
    found = refused(home / "small", "--port", port)
    assert found.returncode == 2 and f"cannot listen on 127.0.0.1:{port}" in found.stderr


@pytest.mark.slow
def test_an_error_of_a_call_is_the_workers_own(running: Running, items: pa.RecordBatch) -> None:
    with Client(running.target) as client, pytest.raises(CallFailed, match="is missing"):
        client.predict(items.drop_columns(["age"]))


@pytest.mark.slow
def test_a_worker_that_is_replaced_loses_no_call_of_clients_without_a_pause(
    running: Running, items: pa.RecordBatch
) -> None:
    answered: Counter[str] = Counter()
    over = threading.Event()

    def call_on() -> None:
        with grpc.insecure_channel(running.target, options=OWN_CONNECTION) as channel:
            method = channel.unary_unary(f"/{SERVICE}/Predict")
            while not over.is_set():
                try:
                    method(message_of(items), timeout=20)
                    answered["OK"] += 1
                except grpc.RpcError as error:
                    answered[f"{error.code().name}: {error.details()}"] += 1

    clients = [threading.Thread(target=call_on) for _ in range(6)]
    for client in clients:
        client.start()
    before = running.workers()
    time.sleep(1)
    os.kill(before[0], signal.SIGTERM)
    until(lambda: before[0] not in running.workers() and len(running.workers()) == 2)
    over.set()
    for client in clients:
        client.join(30)
    lost = {said: calls for said, calls in answered.items() if NOT_SENT not in said}
    assert lost.keys() == {"OK"}, answered
