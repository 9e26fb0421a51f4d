"""Steps run when their inputs changed, and not otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcomp.log.click_log import ClickLog
from embedcomp.pipelines.records import CHECKPOINTS, Records


class Stopped(Exception):
    """Stands for a driver that is killed."""


def writes(runs: list[str], name: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        runs.append(name)
        place.mkdir(exist_ok=True, parents=True)
        return place

    return make


def chain(out: Path, runs: list[str], *, seed: int = 0, force: bool = False) -> None:
    """A step `first`, and a step `second` that reads what `first` made."""
    records = Records(out, force=force)
    records.step("first", "first", {"seed": seed}, writes(runs, "first"))
    records.step("second", "b", {"first": records.made("first")}, writes(runs, "second"))


def test_a_step_is_not_run_again_when_nothing_changed(tmp_path: Path) -> None:
    runs: list[str] = []
    chain(tmp_path, runs)
    chain(tmp_path, runs)
    assert runs == ["first", "second"]


def test_a_changed_setting_runs_its_step_and_all_that_read_it(tmp_path: Path) -> None:
    runs: list[str] = []
    chain(tmp_path, runs)
    chain(tmp_path, runs, seed=1)
    assert runs == ["first", "second"] * 2


def test_force_runs_every_step(tmp_path: Path) -> None:
    runs: list[str] = []
    chain(tmp_path, runs)
    chain(tmp_path, runs, force=True)
    assert runs == ["first", "second"] * 2


def test_a_step_whose_output_was_deleted_is_run_again(tmp_path: Path) -> None:
    runs: list[str] = []
    chain(tmp_path, runs)
    (tmp_path / "b").rmdir()
    chain(tmp_path, runs)
    assert runs == ["first", "second", "second"]


def test_a_stopped_job_goes_on_from_its_last_finished_step(tmp_path: Path) -> None:
    runs: list[str] = []
    records = Records(tmp_path)
    records.step("first", "first", {"seed": 0}, writes(runs, "first"))

    def killed(place: Path) -> Path:
        raise Stopped

    with pytest.raises(Stopped):
        records.step("second", "b", {"first": records.made("first")}, killed)
    chain(tmp_path, runs)
    assert runs == ["first", "second"]


def stopped_step(out: Path, seed: int, workers: int = 1) -> bool:
    """Stops a step that wrote a checkpoint; tells whether one lay there when it began."""
    there: list[bool] = []

    def make(place: Path) -> Path:
        there.append((place / CHECKPOINTS).is_dir())
        (place / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        raise Stopped

    with pytest.raises(Stopped):
        Records(out).step("train", "model", {"seed": seed, "workers": workers}, make)
    return there[0]


def test_checkpoints_outlive_a_stopped_driver_but_not_a_change_of_inputs(tmp_path: Path) -> None:
    assert not stopped_step(tmp_path, seed=0)
    assert stopped_step(tmp_path, seed=0)
    assert not stopped_step(tmp_path, seed=1)


def test_a_stopped_step_goes_on_with_other_workers_and_an_ended_one_begins_again(
    tmp_path: Path,
) -> None:
    assert not stopped_step(tmp_path, seed=0, workers=2)
    assert stopped_step(tmp_path, seed=0, workers=1)
    assert stopped_step(tmp_path, seed=0, workers=4)
    assert not stopped_step(tmp_path, seed=1, workers=2)
    runs: list[str] = []
    for workers in (2, 2, 1):
        inputs = {"seed": 1, "workers": workers}
        Records(tmp_path).step("train", "model", inputs, writes(runs, f"by {workers}"))
    assert runs == ["by 2", "by 1"]


def test_a_log_is_another_one_when_a_file_of_the_split_is_written_again(
    synth_log: ClickLog,
) -> None:
    before = {split: synth_log.stamp([split]) for split in ("train", "test")}
    assert synth_log.stamp(["train"]) == before["train"]
    file = Path(synth_log.files("test")[0])
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert synth_log.stamp(["train"]) == before["train"]
    assert synth_log.stamp(["test"]) != before["test"]
