"""A teacher: its scores, computed once, and their weight against the labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from embedcomp.errors import BadSettings
from embedcomp.log.batches import Batch, Shuffled
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.fit import Data, Report, fit, target
from embedcomp.train.settings import TrainSettings
from embedcomp.train.teacher import TeacherScores
from tests.train.test_train import Killed, small_model, without_seconds

ROWS = 9600


class Teacher(nn.Module):
    """A model of clear opinions that counts the rows which it scores."""

    def __init__(self, features: Features):
        super().__init__()
        self.inside, self.scored = small_model(features), 0

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        self.scored += len(dense)
        found: Tensor = 30 * self.inside(dense, sparse)
        return found


class Knows(nn.Module):
    """A teacher that tells one thing of every row."""

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        return dense.new_zeros(len(dense))


@pytest.fixture(scope="module")
def pieces_log(synth_log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """The made-up log with a training split of four row groups."""
    return with_train(synth_log, tmp_path_factory.mktemp("pieces"))


def with_train(
    log: ClickLog, folder: Path, labels: np.ndarray | None = None, rows: int = 2500
) -> ClickLog:
    """A log whose training split has row groups of `rows` rows, and other labels if given."""
    (folder / "schema.toml").write_text((Path(log.path) / "schema.toml").read_text())
    for split in ("train", "valid", "test"):
        table = pq.read_table(Path(log.path) / f"{split}.parquet")
        if labels is not None and split == "train":
            place = table.schema.get_field_index(log.schema.label)
            kind = table.schema.field(place).type
            table = table.set_column(place, log.schema.label, pa.array(labels).cast(kind))
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=rows)
    return ClickLog(str(folder))


def batch_of(labels: list[float], taught: list[float] | None) -> Batch:
    logits = None if taught is None else torch.tensor(taught)
    return Batch(torch.zeros(len(labels), 0), None, torch.tensor(labels), logits)  # type: ignore[arg-type]


def test_the_target_lies_between_the_labels_and_the_teachers_scores() -> None:
    """Logits of 0 and ln 3 are scores of 1/2 and 3/4."""
    batch = batch_of([0.0, 1.0], [0.0, math.log(3)])
    assert target(batch, 0.25).tolist() == pytest.approx([0.125, 0.9375])
    assert target(batch, 0.0).tolist() == [0.0, 1.0]
    assert target(batch, 1.0).tolist() == pytest.approx([0.5, 0.75])
    assert target(batch_of([0.0, 1.0], None), None).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("weight", [-0.1, 1.5])
@pytest.mark.parametrize("settings", [TrainSettings, TuneSettings])
def test_a_weight_outside_of_0_to_1_is_refused(settings: type[Any], weight: float) -> None:
    with pytest.raises(BadSettings, match=f"distil is {weight}, but must be between 0 and 1"):
        settings(distil=weight)


@pytest.mark.parametrize("buffer_rows", [1500, 4000, None])
def test_each_row_comes_with_its_teachers_logit_however_it_is_shuffled(
    pieces_log: ClickLog, synth_features: Features, tmp_path: Path, buffer_rows: int | None
) -> None:
    """Of four pieces, one of them in two parts and one without its first and last rows."""
    teacher, log = Teacher(synth_features), pieces_log
    taught = TeacherScores.of(teacher, log, "train", synth_features, tmp_path)
    first, second, third, last = log.pieces("train")
    pieces = [last, second.part(900, 2500), first, third.part(70, 2300), second.part(0, 900)]
    shuffled = Shuffled(log, synth_features, pieces, 256, buffer_rows, taught)
    seen = [*shuffled.batches((1,)), *shuffled.batches((2,), skip=3)]
    assert sum(len(batch) for batch in seen) == 2 * sum(p.rows for p in pieces) - 3 * 256
    for batch in seen:
        wanted = scored(teacher, batch)
        assert batch.taught is not None and wanted.std() > 0.5
        torch.testing.assert_close(batch.taught, wanted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def scored(model: nn.Module, batch: Batch) -> Tensor:
    found: Tensor = model.eval()(batch.dense, batch.sparse).view(-1)
    return found


def test_a_score_is_off_by_a_ten_thousandth_at_most_where_its_logit_is_rounded() -> None:
    logits = torch.linspace(-20, 20, 400_001)
    assert (logits.half().float().sigmoid() - logits.sigmoid()).abs().max() < 1.2e-4


def test_a_teacher_scores_a_row_once_for_all_epochs_and_runs(
    pieces_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    teacher, data = Teacher(synth_features), Data(pieces_log, synth_features)
    how = TrainSettings(epochs=2, batch_rows=512, distil=0.5, embedding_l2=0.0)
    for settings in (how, how, replace(how, seed=1)):
        fit(small_model(synth_features), data, settings, tmp_path, teacher=teacher)
        assert teacher.scored == ROWS
    assert len(list(tmp_path.glob("*.taught.npy"))) == 1
    nn.init.ones_(teacher.inside.out.bias)
    fit(small_model(synth_features), data, how, tmp_path, teacher=teacher)
    assert teacher.scored == 2 * ROWS and len(list(tmp_path.glob("*.taught.npy"))) == 2


def taught_model(
    log: ClickLog, features: Features, folder: Path, settings: TrainSettings, kill_after: int = -1
) -> tuple[nn.Module, list[dict[str, Any]], Teacher]:
    """A student, its history and its teacher; killed after so many reports if that is asked for."""
    model, teacher, reports = small_model(features), Teacher(features), 0

    def watch(report: Report) -> None:
        nonlocal reports
        reports += 1
        if reports == kill_after:
            raise Killed

    history = fit(model, Data(log, features), settings, folder, teacher=teacher, watch=watch)
    return model, [without_seconds(entry) for entry in history], teacher


@pytest.mark.parametrize("kill_after", [2, 25])
def test_a_student_that_was_killed_goes_on_as_if_it_had_never_stopped(
    pieces_log: ClickLog, synth_features: Features, tmp_path: Path, kill_after: int
) -> None:
    """In the teacher's pass, and in the second epoch."""
    settings = TrainSettings(epochs=2, batch_rows=512, checkpoint_rows=1024, distil=0.7)
    log, features = pieces_log, synth_features
    whole, history, _ = taught_model(log, features, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        taught_model(log, features, tmp_path / "killed", settings, kill_after)
    resumed, again, teacher = taught_model(log, features, tmp_path / "killed", settings)
    assert history == again and teacher.scored == (ROWS if kill_after == 2 else 0)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_step_goes_towards_the_labels_and_the_scores(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """The losses of a run with steps of no length are those of a plain loop over its batches."""
    teacher, model = Teacher(synth_features), small_model(synth_features)
    settings = TrainSettings(
        epochs=1,
        batch_rows=600,
        distil=0.3,
        embedding_l2=0.0,
        learning_rate=0.0,
        table_learning_rate=0.0,
        precision="float32",
    )
    losses: list[float] = []

    def watch(report: Report) -> None:
        if report.step == "training" and report.valid is None:
            losses.append(report.loss)

    data = Data(synth_log, synth_features)
    fit(model, data, settings, tmp_path, teacher=teacher, watch=watch)
    batches = Shuffled(synth_log, synth_features, synth_log.pieces("train"), 600).batches((0, 0))
    assert losses == pytest.approx([*plain_losses(model, teacher, batches)], rel=1e-4)


def plain_losses(model: nn.Module, teacher: nn.Module, batches: Iterator[Batch]) -> Iterator[float]:
    for batch in batches:
        wanted = 0.7 * batch.labels + 0.3 * scored(teacher, batch).sigmoid()
        yield float(binary_cross_entropy_with_logits(scored(model, batch), wanted))
