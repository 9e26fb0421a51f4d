"""The messages when the cluster cannot be used, and the files that are sent to it."""

from __future__ import annotations

import shlex
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from embedcomp.pipelines import submit as submission
from embedcomp.pipelines.submit import CannotSubmit, submit

JOB = 'log = "clicks"\nout = "small"\n[compress]\nbudget = "5x"\n'


class Cluster:
    """Stands for a cluster whose job writes `log` and ends with `code`."""

    def __init__(self, code: int | None, log: str = "", status: JobStatus = JobStatus.FAILED):
        self.code, self.log, self.status = code, log, status
        self.entrypoint = ""
        self.files: dict[str, str] = {}

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        self.entrypoint = entrypoint
        folder = Path(runtime_env["working_dir"])
        self.files = {file.name: file.read_text() for file in folder.iterdir()}
        return "raysubmit_1"

    async def tail_job_logs(self, number: str) -> AsyncIterator[str]:
        yield self.log

    def get_job_info(self, number: str) -> SimpleNamespace:
        message = "the driver broke"
        return SimpleNamespace(driver_exit_code=self.code, status=self.status, message=message)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def sent_to(cluster: Cluster, job: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> int:
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: cluster)
    return submit(job, "http://head:8265", **{"force": False, "changes": [], **how})


def test_the_job_file_and_whole_paths_travel_with_the_job(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job.parent)
    cluster = Cluster(0, status=JobStatus.SUCCEEDED)
    assert sent_to(cluster, job, monkeypatch, force=True, changes=["train.epochs=2"]) == 0
    assert cluster.files == {"job.toml": JOB}
    words = shlex.split(cluster.entrypoint)
    command = words[words.index("-m") :]
    assert command[:4] == ["-m", "embedcomp.pipelines.run", "job.toml", "--force"]
    assert command[5::2] == [
        "train.epochs=2",
        f'log="{job.parent}/clicks"',
        f'out="{job.parent}/small"',
    ]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (-9, 1), (None, 1)])
def test_the_exit_code_is_the_jobs(
    job: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, expected: int
) -> None:
    assert sent_to(Cluster(code), job, monkeypatch) == expected


def test_a_job_that_broke_is_named(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent_to(Cluster(-9), job, monkeypatch)
    assert "job raysubmit_1 failed: the driver broke" in capsys.readouterr().err


def test_a_cluster_without_embedcomp_is_told_apart(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "ModuleNotFoundError: No module named 'embedcomp'"
    with pytest.raises(CannotSubmit, match="does not have embedcomp"):
        sent_to(Cluster(1, log), job, monkeypatch)


def test_an_interrupt_leaves_the_job_and_says_how_to_stop_it(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(submission, "_follow", interrupted)
    assert sent_to(Cluster(0), job, monkeypatch) == 130
    said = capsys.readouterr().err
    assert "ray job stop --address http://head:8265 raysubmit_1" in said


def test_an_address_where_nothing_answers_is_one_sentence(job: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CannotSubmit, match=f"no Ray dashboard answers at {address}"):
        submit(job, address, force=False, changes=[])


def test_urls_travel_with_the_job_as_they_are(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job.parent)
    cluster = Cluster(0)
    changes = ["out=s3://bucket/out", "work=shared", "counts=s3://bucket/counts"]
    sent_to(cluster, job, monkeypatch, changes=changes)
    words = shlex.split(cluster.entrypoint)
    assert words[-6::2] == ["--set"] * 3
    assert words[-5::2] == [
        'out="s3://bucket/out"',
        f'work="{job.parent}/shared"',
        'counts="s3://bucket/counts"',
    ]
