"""Parts of a model that have a say in how they are trained (embedcomp/storage/training.py)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.storage.training import Group, Moved, Progress, Trains
from embedcomp.support.progress import quiet
from embedcomp.swapping import tune
from embedcomp.train import probe
from embedcomp.train.fit import Data, fit
from embedcomp.train.optim import LazyAdam, begin_anew, groups, optimizers
from embedcomp.train.settings import FormTrainSettings, TrainSettings
from tests.train.killed import trained, trained_in_spite_of_kills
from tests.train.test_train import small_model

SETTINGS = TrainSettings(epochs=2, batch_rows=512, checkpoint_rows=1024, embedding_l2=50.0)
PRICE = 0.01


class Part(Trains):
    """Uses every hook; the trace of them is in its buffers, so that a checkpoint has it."""

    summed = ("rows",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.drawn: Tensor
        self.rows: Tensor
        self.register_buffer("drawn", torch.zeros(()))
        self.register_buffer("rows", torch.zeros(()))
        self.register_buffer("epochs", torch.zeros(2))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, logits: Tensor) -> Tensor:
        if self.training:
            self.rows += len(logits)
        return logits * self.scale.mean() + self.drawn

    def groups(self) -> list[Group]:
        return [Group((self.scale,), "sgd", rate=2.0)]

    def penalty(self) -> Tensor:
        return PRICE * self.scale.sum()

    def before_step(self, at: Progress) -> None:
        self.drawn = torch.rand((), generator=at.drawn()) * 0.1

    def after_step(self, at: Progress) -> list[Moved]:
        assert at.step == int(self.steps) and self.scale.grad is not None
        self.steps += 1
        return []

    def after_epoch(self, at: Progress) -> list[Moved]:
        self.epochs[(at.step - 1) // at.steps_per_epoch] = self.rows
        self.rows.zero_()
        return []

    @property
    def settled(self) -> bool:
        return bool(self.epochs[0] > 0)


class Around(nn.Module):
    def __init__(self, features: Features):
        super().__init__()
        self.inside, self.part = small_model(features), Part()

    def forward(self, *inputs: object) -> Tensor:
        found: Tensor = self.part(self.inside(*inputs).view(-1))
        return found


def run(log: ClickLog, features: Features, folder: Path) -> tuple[Around, list[Any]]:
    model = Around(features)
    return model, trained(model, Data(log, features), SETTINGS, folder)


@pytest.mark.slow
def test_every_hook_is_called_and_goes_on_after_a_kill(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    data = Data(synth_log, synth_features)
    whole, _ = trained_in_spite_of_kills(
        lambda: Around(synth_features), data, SETTINGS, tmp_path, (7, 25)
    )
    assert isinstance(whole, Around)
    assert whole.part.epochs[0] == synth_log.rows("train")


def test_what_is_not_settled_is_never_the_best(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    whole, history = run(synth_log, synth_features, tmp_path)
    early = [entry for entry in history if entry.get("settled") is False]
    late = [entry for entry in history if "settled" not in entry]
    assert early and late and {entry["epoch"] for entry in early} == {0}
    assert whole.part.settled


class Unsettled(Part):
    @property
    def settled(self) -> bool:
        return False


@pytest.mark.slow
def test_probes_of_what_is_never_settled_are_judged_as_they_end(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, stages = Around(synth_features), set()
    model.part = Unsettled()
    model.part.before_step = lambda at: stages.add(at.stage)  # type: ignore[method-assign]
    monkeypatch.setattr(probe, "FEWEST", 1)
    monkeypatch.setattr(probe, "left_open", lambda settings, taught: [probe.DISTIL])
    monkeypatch.setattr(probe, "PASSES", 1)
    monkeypatch.setattr(probe, "DISTILS", (probe.USUAL_DISTIL, 1.0))
    monkeypatch.setattr(Part, "after_step", lambda self, at: [])
    monkeypatch.setattr(Part, "after_epoch", lambda self, at: [])
    history = fit(
        model,
        Data(synth_log, synth_features),
        replace(SETTINGS, epochs=1),
        tmp_path,
        teacher=small_model(synth_features),
        stage="search",
    )
    probes = history[0]["probes"]
    assert len(probes) == 2 and all(0 < one["auc"] < 1 for one in probes)
    assert stages == {"search"}


def first_of(data: Data, folder: Path, *, part_far: bool = False, **how: Any) -> Any:
    """What the history of a compressed form's training tells first."""
    model, far = Around(data.features), how.pop("far", False)
    model.part.begins_far = part_far
    settings = FormTrainSettings(epochs=1, batch_rows=512, **how)
    return fit(model, data, settings, folder, teacher=small_model(data.features), far=far)[0]


@pytest.mark.slow
def test_what_begins_near_its_end_learns_at_small_rates(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """Where none are given."""
    told = partial(first_of, Data(synth_log, synth_features), tmp_path, probes=False)
    near = told()
    assert near["rate_factor"] == 0.03 and "probes" not in near
    assert (near["distil"], near["embedding_l2"]) == (probe.USUAL_DISTIL, probe.USUAL_L2)
    assert told(far=3.0)["rate_factor"] == told(part_far=True)["rate_factor"] == 1.0
    assert told(far=0.2)["rate_factor"] == 0.2 and told(far=math.nan)["rate_factor"] == 0.03
    assert told(rate_factor=0.3)["rate_factor"] == 0.3


@pytest.mark.slow
def test_probes_of_what_is_chosen_first_have_the_rest_as_it_usually_is_or_are_not_run(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "FEWEST", 1000)
    monkeypatch.setattr(probe, "PASSES", 1)
    monkeypatch.setattr(probe, "DISTILS", (probe.USUAL_DISTIL, 1.0))
    seen, set_to = [], probe.Weight.set

    def told(self: probe.Weight, settings: Any, value: float) -> Any:
        seen.append((self.setting, value, settings.distil))
        return set_to(self, settings, value)

    monkeypatch.setattr(probe.Weight, "set", told)
    data = Data(synth_log, synth_features)
    tried = {one["setting"] for one in first_of(data, tmp_path / "a")["probes"]}
    assert tried == {"embedding_l2", "distil"}
    of_l2 = [distil for name, value, distil in seen if (name, value) == ("embedding_l2", 24000.0)]
    assert of_l2 and {*of_l2} == {probe.USUAL_DISTIL}
    assert "probes" not in first_of(data, tmp_path / "b", probes=False)


def test_what_is_trained_without_the_original_begins_far_from_its_end(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    """Also where nothing of it is stored in another form."""
    settings, data = FormTrainSettings(epochs=1, batch_rows=512), Data(synth_log, synth_features)
    for teacher, wanted in ((None, 1.0), (small_model(synth_features), 0.03)):
        model = small_model(synth_features)
        history = tune.train_form(model, teacher, data, settings, tmp_path, quiet)
        assert history[0]["rate_factor"] == wanted


def test_a_factor_is_of_the_rates_of_dense_numbers_and_of_rows(synth_features: Features) -> None:
    model = Around(synth_features)

    def rates(factor: float) -> list[float]:
        settings = replace(SETTINGS, table_learning_rate=0.02, rate_factor=factor)
        made = optimizers(model, settings, 1000)
        return [group["lr"] for one in made for group in one.param_groups]

    assert rates(0.3) == pytest.approx([0.3 * rate for rate in rates(1.0)])


def test_groups_have_rates_and_weights_of_their_own(synth_features: Features) -> None:
    model, rows = Around(synth_features), 1000
    found = {id(p): group.kind for group in groups(model) for p in group.parameters}
    assert len(found) == len(list(model.parameters()))
    by_kind = {type(o): o.param_groups for o in optimizers(model, SETTINGS, rows)}
    (sgd,) = by_kind[torch.optim.SGD]
    assert sgd["lr"] == 2 * SETTINGS.learning_rate and sgd["params"] == [model.part.scale]
    assert {g["l2"] for g in by_kind[LazyAdam]} == {50.0 / rows}


def test_a_penalty_is_in_the_unit_of_the_mean_loss(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of plain gradient descent moves the scale by the price, beside the loss's own part."""
    moved = []
    for price in (0.0, 1.0):
        monkeypatch.setattr(Part, "penalty", lambda self, price=price: price * self.scale.sum())
        monkeypatch.setattr(Part, "before_step", lambda self, at: None)
        model = Around(synth_features)
        once = TrainSettings(epochs=1, batch_rows=10**6, embedding_l2=0.0, learning_rate=1e-3)
        fit(model, Data(synth_log, synth_features), once, tmp_path / str(price))
        moved.append(model.part.scale.detach())
    assert torch.allclose(moved[0] - moved[1], torch.full((3,), 2e-3), atol=1e-6)


def test_a_number_that_was_set_begins_anew() -> None:
    rows = nn.Parameter(torch.ones(4, 2))
    optimizer = LazyAdam([rows], lr=0.1)
    for _ in range(3):
        rows.grad = torch.sparse_coo_tensor([[1, 2]], torch.ones(2, 2), (4, 2))
        optimizer.step()
    begin_anew([optimizer], [Moved(rows, torch.tensor([1]))])
    state = optimizer.state[rows]
    assert not state["mean"][1].any() and not state["square"][1].any() and state["mean"][2].all()
    assert state["last"][1] == state["step"]
    begin_anew([optimizer], [Moved(rows)])
    assert not state["mean"].any()


def test_draws_differ_by_step_stage_seed_and_salt() -> None:
    def drawn(step: int = 0, stage: str = "final", seed: int = 0, salt: int = 0) -> float:
        at = Progress(stage, step, 10, 5, seed)  # type: ignore[arg-type]
        return float(torch.rand((), generator=at.drawn(salt)))

    every = [drawn(), drawn(1), drawn(stage="search"), drawn(seed=1), drawn(salt=1)]
    assert len(set(every)) == 5 and drawn() == every[0]


def test_the_share_of_a_run_is_that_of_its_steps() -> None:
    assert Progress("final", 6, 24, 12, 0).share == 0.25
    assert Progress("final", 0, 0, 0, 0).share == 0
