"""A whole job on a local cluster: sent, repeated, changed, and killed in the middle."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any, TypeVar

import pytest
import ray
import torch
from ray.util.state import list_actors
from safetensors.torch import load_file

from embedcomp.artifact.artifact import Artifact
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.pipelines import run
from embedcomp.pipelines.job import Job
from embedcomp.pipelines.records import CHECKPOINTS
from embedcomp.pipelines.submit import submit
from embedcomp.recipes.settings import JobSettings, read_job
from embedcomp.train.fit import Data
from tests.pipelines.conftest import JOB, ROOT
from tests.train.joined import train_joined
from tests.train.killed import without_seconds

pytestmark = [pytest.mark.ray, pytest.mark.slow]

T = TypeVar("T")
STEPS = ("count", "train", "measure", "plan", "control", "compress", "evaluate")
TENSORS = "model.safetensors"


@pytest.fixture(scope="module")
def job_file(pieces_log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.toml").write_text(JOB.format(log=pieces_log.path, out=folder / "out"))
    return folder / "job.toml"


@pytest.fixture(scope="module")
def settings(job_file: Path) -> JobSettings:
    return read_job(job_file)


@pytest.fixture(scope="module")
def streamed(cluster: str, job_file: Path) -> str:
    """What is told of the job while it runs through the Job API."""
    told = io.StringIO()
    with redirect_stdout(told):
        assert submit(job_file, cluster, force=False, changes=[]) == 0
    return told.getvalue()


@pytest.fixture(scope="module")
def result(streamed: str, settings: JobSettings) -> dict[str, Any]:
    """The job's result, after it was run through the Job API."""
    found: dict[str, Any] = json.loads((Path(settings.out) / "evaluation.json").read_text())
    return found


def test_a_submitted_job_compares_original_control_and_compressed(result: dict[str, Any]) -> None:
    models = result["models"]
    assert list(models) == ["original", "control", "compressed"]
    assert all(found["rows"] == 1200 for found in models.values())
    sizes = {name: found["bytes"]["total"] for name, found in models.items()}
    assert sizes["compressed"] <= sizes["original"] / 2
    assert models["original"]["auc"] > 0.5


def test_the_jobs_log_is_streamed(streamed: str) -> None:
    for step in STEPS:
        assert f"{step}: " in streamed
    assert "compressed" in streamed  # the table
    assert "predicted log loss +" in streamed  # the plan


def test_a_job_whose_inputs_stayed_runs_no_step_and_prints_the_same(
    result: object, job_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(job_file)]) == 0
    told = capfd.readouterr()
    for step in STEPS:
        assert f"{step}: nothing changed" in told.err
    assert "predicted log loss +" in told.err and "compressed" in told.out


def test_a_mistake_found_by_the_job_ends_with_2_and_its_sentence(
    cluster: str, job_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = [f"log={tmp_path}/nowhere", f"out={tmp_path}/out"]
    assert submit(job_file, cluster, force=False, changes=changes) == 2
    assert "error: " in (out := capfd.readouterr().out) and "no readable schema.toml" in out
    assert not (tmp_path / "out").exists()


def test_a_changed_budget_compresses_and_evaluates_again_and_nothing_else(
    cluster: str, result: dict[str, Any], settings: JobSettings
) -> None:
    before = made(settings)
    tune = replace(settings.compress.tune, epochs=0)
    changed = replace(settings, compress=replace(settings.compress, budget="3x", tune=tune))
    again = Job(changed).run()
    after = made(settings)
    assert {name for name in after if after[name] != before[name]} == {
        "plan",
        "compress",
        "evaluate",
    }
    assert list(again["models"]) == ["original", "compressed"]
    sizes = {name: found["bytes"]["total"] for name, found in again["models"].items()}
    assert sizes["compressed"] <= sizes["original"] / 3


def test_a_killed_driver_and_then_a_killed_worker_change_nothing_in_the_model(
    cluster: str, result: object, settings: JobSettings, job_file: Path, tmp_path: Path
) -> None:
    killed = replace(settings, out=str(tmp_path))
    checkpoints = tmp_path / "model" / CHECKPOINTS
    command = [
        sys.executable,
        "-m",
        "embedcomp.pipelines.run",
        str(job_file),
        "--set",
        f"out={tmp_path}",
    ]
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address})
    wait_for(lambda: list(checkpoints.glob("*.last.pt")))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not training_pids())
    counted, progress = made(killed)["count"], newest(checkpoints)

    again = Job(killed)
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(lambda: again.train(again.count()))
        (pid,) = wait_for(training_pids)
        wait_for(lambda: trained.done() or newest(checkpoints) > progress)
        assert not trained.done(), "the training ended before it could be killed"
        os.kill(pid, signal.SIGKILL)
        folder = trained.result()

    assert made(killed)["count"] == counted  # not counted again
    whole = Artifact.open(Path(settings.out) / "model")
    assert without_speed(Artifact.open(folder)) == without_speed(whole)
    tensors, others = (load_file(f / "model.safetensors") for f in (folder, whole.folder))
    assert all(tensors[name].equal(others[name]) for name in others)


def test_two_workers_make_the_model_of_one_that_has_their_batches_together(
    cluster: str, result: object, settings: JobSettings, tmp_path: Path
) -> None:
    """From weights of one's own, which the job is given."""
    once = replace(
        settings.train, epochs=1, embedding_l2=50.0, precision="float32", evaluations_per_epoch=1
    )
    start = Artifact.open(Path(settings.out) / "model").folder / "model.safetensors"
    given = {"train": once, "checkpoint": str(start)}
    two = Job(replace(settings, out=str(tmp_path), workers=2, **given))
    folder = two.train(features := two.count())
    assert [child.name for child in (tmp_path / "model").iterdir()] == ["1"]
    data = Data(two.log, Features.load(features))
    wanted = two.source.build(data.features, once.seed)
    wanted.load_state_dict(load_file(start))
    train_joined(wanted, data, once, 2)
    found = Artifact.open(folder).model().state_dict()
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def copied(folder: Path, place: Path) -> Path:
    return Path(copytree(folder, place))


def with_a_student(settings: JobSettings, folder: Path, workers: int) -> JobSettings:
    taught = replace(settings.train, epochs=2, distil=0.7)
    compress = replace(
        settings.compress,
        budget="4x",
        methods=("low_rank", "half"),
        student="hidden=8,cross_layers=1",
        student_train=taught,
    )
    return replace(settings, out=str(folder), workers=workers, compress=compress)


def test_a_student_whose_worker_is_killed_takes_the_place_of_the_original(
    cluster: str, settings: JobSettings, tmp_path: Path
) -> None:
    job = Job(with_a_student(settings, tmp_path, workers=2))
    original = job.train(job.count())
    control = job.control(original)
    students = tmp_path / "artifact" / CHECKPOINTS / "students"
    with ThreadPoolExecutor() as pool:
        ran = pool.submit(job.student, original, control)
        wait_for(lambda: ran.done() or [*students.glob(f"*/{CHECKPOINTS}/*.last.pt")])
        assert not ran.done(), "the student was trained before a worker could be killed"
        for pid in training_pids():
            os.kill(pid, signal.SIGKILL)
        folder = ran.result()
    models = job.run()["models"]
    assert models["compressed"]["path"] == str(folder)
    assert list(models) == ["original", "control", "compressed"]
    sizes = {name: found["bytes"]["total"] for name, found in models.items()}
    assert sizes["compressed"] <= sizes["original"] / 4

    found = Artifact.open(tmp_path / "artifact")
    assert found.source.settings["hidden"] == [8]
    assert [child.name for child in (tmp_path / "artifact").iterdir()] == ["1"]
    whole = Job(replace(job.settings, out=str(tmp_path / "whole")))
    for step, place, made_by in (("train", "model", original), ("control", "control", control)):
        whole.records.step(step, place, {}, partial(copied, made_by))
    wanted = load_file(whole.student(original, control) / TENSORS)
    tensors = load_file(found.folder / TENSORS)
    assert tensors.keys() == wanted.keys()
    assert all(tensors[name].equal(wanted[name]) for name in wanted)


def made(settings: JobSettings) -> dict[str, str]:
    """By step, what names its present output."""
    records = Path(settings.out).glob(".steps/*.json")
    return {file.stem: json.loads(file.read_text())["made"] for file in records}


def newest(folder: Path) -> int:
    """Time of the last checkpoint, in nanoseconds."""
    return max((f.stat().st_mtime_ns for f in folder.glob("*.last.pt")), default=0)


def training_pids() -> list[int]:
    alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    return [actor.pid for actor in list_actors(filters=alive)]


def without_speed(model: Artifact) -> list[dict[str, Any]]:
    return [without_seconds(entry) for entry in model.origin.training["history"]]


def wait_for(condition: Callable[[], T]) -> T:
    """What the condition gives once that is anything."""
    end = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened for five minutes"
        time.sleep(0.01)
    return found
