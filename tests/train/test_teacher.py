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
from embedcomp.support.metrics import Quality
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train import probe
from embedcomp.train.fit import Data, Report, fit, target
from embedcomp.train.settings import TrainSettings
from embedcomp.train.teacher import TeacherScores
from tests.train.killed import Killed, without_seconds
from tests.train.test_train import small_model

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


@pytest.mark.slow
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


@pytest.mark.slow
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


class Found(Quality):
    """A quality whose AUC and log loss are given, of 1,000 clicks: its AUC's error is 0.0091."""

    def __init__(self, auc: float, logloss: float):
        super().__init__()
        self._auc, self._losses, self.counts[:, 0] = auc, [4000 * logloss], (3000, 1000)

    @property
    def auc(self) -> float:
        return self._auc


def chosen(aucs: list[float], losses: list[float], file: Path) -> tuple[float, list[float]]:
    """The weight that probes of these AUCs and losses choose, and those tried, in their order."""
    tried: list[float] = []
    by_weight = dict(zip(probe.DISTILS, map(Found, aucs, losses), strict=True))

    def train(weight: float) -> Quality:
        tried.append(weight)
        return by_weight[weight]

    return probe.chosen_distil(probe.Probes("distil", train, file)), tried


@pytest.mark.parametrize(
    ("aucs", "wanted", "tried"),
    [
        ([0.60, 0.61, 0.62, 0.63, 0.64], 1.0, [0.7, 0.85, 1.0]),
        ([0.60, 0.61, 0.62, 0.63, 0.62], 0.85, [0.7, 0.85, 1.0]),
        ([0.60, 0.61, 0.62, 0.61, 0.70], 0.7, [0.7, 0.85, 0.5]),
        ([0.64, 0.63, 0.62, 0.61, 0.60], 0.0, [0.7, 0.85, 0.5, 0.0]),
        ([0.60, 0.63, 0.62, 0.61, 0.60], 0.5, [0.7, 0.85, 0.5, 0.0]),
        ([0.60, 0.60, 0.60, 0.60, 0.60], 0.7, [0.7, 0.85, 0.5]),  # no difference: as usual
    ],
)
def test_probes_go_from_the_usual_weight_as_far_as_the_auc_rises(
    tmp_path: Path, aucs: list[float], wanted: float, tried: list[float]
) -> None:
    assert chosen(aucs, [0.5] * 5, tmp_path / "probes.json") == (wanted, tried)


def test_probes_of_about_one_auc_are_told_apart_by_their_log_loss(tmp_path: Path) -> None:
    """A tenth of the error is 0.0009; the losses speak for the labels alone."""
    losses = [0.50, 0.51, 0.52, 0.53, 0.54]
    alike, apart = [0.6, 0.6004, 0.6008, 0.6012, 0.6016], [0.6, 0.601, 0.602, 0.603, 0.604]
    assert chosen(alike, losses, tmp_path / "alike")[0] == 0.0
    assert chosen(apart, losses, tmp_path / "apart")[0] == 1.0


class Constant(nn.Module):
    """A teacher that knows nothing: its score of every row is 1/2."""

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        return dense.new_zeros(len(dense))


def weight_chosen(
    log: ClickLog, features: Features, teacher: nn.Module, folder: Path, **settings: Any
) -> float:
    how = TrainSettings(embedding_l2=50.0, **settings)
    (first, *_) = fit(small_model(features), Data(log, features), how, folder, teacher=teacher)
    assert {one["setting"] for one in first["probes"]} == {"distil"}
    found: float = first["distil"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["plateau", "linear"])
def test_a_teachers_weight_is_large_where_the_labels_are_noise_and_none_where_it_knows_nothing(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
) -> None:
    monkeypatch.setattr(probe, "FEWEST", 1000)
    teacher, data = small_model(synth_features), Data(synth_log, synth_features)
    fit(teacher, data, TrainSettings(epochs=6, embedding_l2=50.0), tmp_path)
    noise = (np.random.default_rng(0).random(ROWS) < 0.5).astype(np.int64)
    log, two = with_train(synth_log, tmp_path, noise), {"epochs": 2, "schedule": schedule}
    assert weight_chosen(log, synth_features, teacher, tmp_path / "noise", **two) >= 0.85
    found = weight_chosen(synth_log, synth_features, Constant(), tmp_path / "constant", **two)
    assert found == 0.0
