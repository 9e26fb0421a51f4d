"""The plan of a job: made once, printed, and carried out as it is by every worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.pipelines import job
from embedcomp.pipelines.job import STATISTICS, Job
from embedcomp.planning.plan import Plan
from embedcomp.recipes import students
from embedcomp.recipes.settings import CompressSettings, JobSettings
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import TrainSettings

SOURCE = ModelSource(model="deepfm", settings={"width": 4, "hidden": [8]}).complete()
WORKERS = 2


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks and workers run in this process, one after the other."""

    def trained(self: Job, recipe: job.Makes) -> Path:
        first, *_ = [recipe(watch=recipes.quiet) for _ in range(self.settings.workers)]
        return first.folder

    monkeypatch.setattr(Job, "once", lambda self, work: work())
    monkeypatch.setattr(Job, "trained", trained)


@pytest.mark.slow
def test_a_plan_is_made_once_and_every_worker_carries_out_that_one(
    here: None,
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    none = TrainSettings(epochs=0)
    original = recipes.train(synth_log, synth_features, SOURCE, none, tmp_path / "out/model")
    tune = TuneSettings(epochs=1, batch_rows=4096)
    settings = CompressSettings(budget="60%", methods=("row_int8", "half"), tune=tune)
    made = Job(
        JobSettings(
            log=synth_log.path, out=str(tmp_path / "out"), workers=WORKERS, compress=settings
        )
    )

    def measured(place: Path) -> Path:
        place.mkdir()
        found = recipes.measure(original, synth_log, settings).to_tensors()
        save_file(found, place / STATISTICS)
        return place

    made.records.step("train", "model", {}, lambda place: original.folder)
    statistics = made.records.step("measure", "statistics", {}, measured)
    plans: list[Plan] = []
    plan: Callable[..., Plan] = recipes.plan
    monkeypatch.setattr(recipes, "plan", lambda *given: plans.append(plan(*given)) or plans[-1])
    file = made.plan(original.folder, statistics)
    told = capsys.readouterr().err
    for layer in plans[0].layers:
        assert layer.layer in told
    assert "predicted log loss +" in told
    control = made.control(original.folder)
    made.compress(original.folder, statistics, file, control)
    assert len(plans) == 1
    versions = [Artifact.open(tmp_path / f"out/artifact/{n}") for n in (1, 2)]
    for made_of in (version.plan for version in versions):
        assert made_of is not None and made_of.outcome is not None
        assert replace(made_of, outcome=None) == plans[0]
    tensors = [version.tensors() for version in versions]
    assert all(torch.equal(tensors[0][name], t) for name, t in tensors[1].items())
    proof, beside = versions[0].proof, Artifact.open(control).proof
    assert proof is not None and beside is not None and original.proof is not None
    assert (proof.original, proof.control) == (original.proof.model, beside.model)


def test_what_a_plan_leaves_untouched_is_told(
    here: None,
    tmp_path: Path,
    synth_log: ClickLog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = JobSettings(
        log=synth_log.path, out=str(tmp_path), compress=CompressSettings(budget="2x")
    )
    plan = Plan(
        budget_bytes=1,
        bytes_before=2,
        bytes_after=1,
        layers=(),
        untouched={"attention": "is of a kind that no method takes"},
        single_valued=(),
    )
    made = Job(settings)
    made.records.step("measure", "statistics", {}, lambda place: place.mkdir() or place)
    monkeypatch.setattr(job, "_measured", lambda statistics: None)
    monkeypatch.setattr(Artifact, "open", lambda path: None)
    monkeypatch.setattr(recipes, "held_out", lambda *given: None)
    monkeypatch.setattr(recipes, "plan", lambda *given: plan)
    for _ in range(2):  # also where nothing changed
        made.plan(tmp_path, tmp_path)
        told = " ".join(capsys.readouterr().err.split())
        assert "attention" in told and "is of a kind that no method takes" in told


@pytest.mark.slow
def test_a_job_whose_student_was_interrupted_goes_on_from_what_was_trained(
    here: None,
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, once = tmp_path / "out", TrainSettings(epochs=1, batch_rows=1024)
    original = recipes.train(synth_log, synth_features, SOURCE, once, out / "model")
    taught = replace(once, distil=0.7)
    settings = CompressSettings(
        budget="2x", methods=("row_int8", "half"), student="hidden=4", student_train=taught
    )
    made = Job(JobSettings(log=synth_log.path, out=str(out), compress=settings))
    made.records.step("train", "model", {}, lambda place: original.folder)
    trained: list[Path] = []
    train: Callable[..., Artifact] = students.train

    def counted(*given: Any, **more: Any) -> Artifact:
        trained.append(given[4])
        return train(*given, **more)

    monkeypatch.setattr(students, "train", counted)
    with monkeypatch.context() as patch:
        patch.setattr(students, "plan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.student(original.folder)
    folder = made.student(original.folder)
    assert len(trained) == 1
    found = Artifact.open(folder)
    assert found.source.settings["hidden"] == [4]
    assert [child.name for child in (out / "artifact").iterdir()] == ["1"]
    assert made.student(original.folder) == folder and len(trained) == 1  # nothing changed
    other = replace(made.settings.compress, student_train=replace(taught, seed=1))
    changed = Job(replace(made.settings, compress=other))
    with monkeypatch.context() as patch:
        patch.setattr(students, "plan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            changed.student(original.folder)
        with pytest.raises(KeyboardInterrupt):
            made.student(original.folder)
    assert len(trained) == 3  # of other settings nothing is gone on from


def interrupted(*given: object) -> Plan:
    raise KeyboardInterrupt
