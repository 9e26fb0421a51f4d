"""Students in the place of an original, from settings to artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact, versions
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.recipes import students
from embedcomp.recipes.settings import CompressSettings, read_student
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import TrainSettings

SOURCE = ModelSource(model="dcnv2", settings={"width": 8, "hidden": [32, 16], "cross_layers": 2})
HOW = TrainSettings(
    epochs=2, batch_rows=256, learning_rate=3e-3, table_learning_rate=3e-3, embedding_l2=50.0
)


@pytest.fixture(scope="module")
def original(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder = tmp_path_factory.mktemp("teacher")
    return recipes.train(synth_log, synth_features, SOURCE.complete(), HOW, folder)


def asked(student: str, **more: Any) -> CompressSettings:
    values = {"budget": "20x", "measure_rows": 2000, "methods": ("low_rank", "half")}
    taught = replace(HOW, epochs=1, distil=0.7)
    return CompressSettings(**{**values, "student": student, "student_train": taught, **more})


def test_a_student_is_said_by_its_settings() -> None:
    assert read_student("hidden=64,32,cross_layers=1") == {"hidden": [64, 32], "cross_layers": 1}
    assert read_student("auto") == read_student("") == {}
    for said in ("hidden", "64,32", "hidden=", "hidden=8,,4"):
        with pytest.raises(BadSettings, match="as hidden=64,32,cross_layers=1"):
            read_student(said)


@pytest.mark.slow
def test_shapes_that_are_tried_have_less_of_everything(original: Artifact) -> None:
    found = students.shapes(original, "auto")
    assert found == {
        "16x8": {"hidden": (16, 8), "cross_layers": 1},
        "8x4": {"hidden": (8, 4), "cross_layers": 1},
        "4x4": {"hidden": (4, 4), "cross_layers": 1},
    }
    assert students.shapes(original, "hidden=8") == {"said": {"hidden": [8]}}


@pytest.mark.slow
def test_a_student_keeps_to_the_bytes_of_the_original(
    synth_log: ClickLog, original: Artifact, tmp_path: Path
) -> None:
    made = recipes.with_student(original, synth_log, asked("hidden=8,cross_layers=1"), tmp_path)
    budget = model_bytes(original.model())["total"] // 20
    assert module_bytes(made.model()) <= budget
    assert made.source.settings["hidden"] == [8] and made.source.settings["cross_layers"] == 1
    assert made.proof is not None and original.proof is not None
    assert made.proof.original == original.proof.model
    assert versions(tmp_path) == [1] and not (tmp_path / ".checkpoints").exists()


@pytest.mark.slow
def test_the_best_of_some_students_and_the_original_is_taken(
    synth_log: ClickLog, original: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[students.Tried] = []
    once = students._tried

    def seen(*given: Any) -> students.Tried:
        tried.append(once(*given))
        return tried[-1]

    monkeypatch.setattr(students, "_tried", seen)
    made = recipes.with_student(original, synth_log, asked("auto"), tmp_path)
    assert [one.name for one in tried] == ["", "16x8", "8x4", "4x4"]
    least = min(tried, key=lambda one: one.auc_loss)
    assert made.plan is not None and made.plan.outcome is not None
    assert made.plan.outcome.auc_loss == least.auc_loss


@pytest.mark.slow
def test_a_killed_run_leaves_students_to_the_same_settings_alone(
    synth_log: ClickLog, original: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    train = students.train

    def counted(*given: Any, **more: Any) -> Artifact:
        trained.append(given[4])
        return train(*given, **more)

    monkeypatch.setattr(students, "train", counted)
    monkeypatch.setattr(students, "plan", interrupted)
    one = asked("hidden=8,cross_layers=1")
    other = replace(one, student_train=replace(one.student_train, seed=1))
    for settings in (one, one, other, one):
        with pytest.raises(KeyboardInterrupt):
            recipes.with_student(original, synth_log, settings, tmp_path)
    assert len(trained) == len({*trained}) == 2


def interrupted(*given: object) -> Any:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_what_no_student_can_be_is_refused(
    synth_log: ClickLog, original: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(BadSettings, match="budget of what is served"):
        asked("auto", budget="", max_auc_loss=0.001)
    with pytest.raises(BadSettings, match="budget of what is served"):
        asked("auto", budget_of="disk")
    foreign = replace(
        original,
        manifest=original.manifest.model_copy(update={"source": {"model": "a.package:factory"}}),
    )
    with pytest.raises(BadSettings, match="embedcomp train --teacher"):
        students.shapes(foreign, "auto")


@pytest.mark.slow
def test_several_workers_make_one_student(
    synth_log: ClickLog, original: Artifact, tmp_path: Path
) -> None:
    mp.spawn(_made_together, args=(tmp_path, synth_log.path, original.folder), nprocs=2)
    made = Artifact.open(tmp_path / "out")
    assert versions(tmp_path / "out") == [1] and not (tmp_path / "out/.checkpoints").exists()
    assert made.source.settings["hidden"] == [8]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == str(made.folder)


def _made_together(rank: int, folder: Path, log: str, original: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    tune = TuneSettings(epochs=1, batch_rows=1024)
    settings = asked("hidden=8,cross_layers=1", tune=tune)
    made = recipes.with_student(Artifact.open(original), ClickLog(log), settings, folder / "out")
    (folder / f"{rank}").write_text(str(made.folder))
    dist.destroy_process_group()
