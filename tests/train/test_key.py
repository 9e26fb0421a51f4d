"""Names of checkpoints: a run goes on from its own and from no other's."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from embedcomp import recipes
from embedcomp.artifact import Artifact
from embedcomp.compress.tune import TuneSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.settings import CompressSettings
from embedcomp.source import ModelSource
from embedcomp.train.fit import Report, Watch
from embedcomp.train.key import RunKey
from embedcomp.train.settings import TrainSettings
from tests.train.test_train import Killed, small_model

SPLITS = ("train", "valid")
SETTINGS = CompressSettings(
    budget="2x", methods=("int8", "int4", "low_rank"), tune=TuneSettings(epochs=2, batch_rows=512)
)


def key(log: ClickLog, features: Features, model: nn.Module, **changes: object) -> RunKey:
    arguments = {"splits": SPLITS, "settings": TrainSettings(), "teacher": None} | changes
    return RunKey.of(model, log, features=features, **arguments)  # type: ignore[arg-type]


def test_runs_that_train_the_same_have_one_name(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    synth_features.save(tmp_path)
    first = key(synth_log, synth_features, small_model(synth_features))
    loaded = Features.load(tmp_path)
    again = key(ClickLog(synth_log.path), loaded, small_model(loaded))
    assert first == again and first.name == again.name


def test_runs_that_differ_in_anything_have_names_of_their_own(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    log, features, model = synth_log, synth_features, small_model(synth_features)
    shutil.copytree(log.path, tmp_path / "other")
    others = Features.from_counts(log, count(log, log.pieces("train")), 3)
    started = copy.deepcopy(model)
    nn.init.zeros_(started.out.bias)
    frozen = copy.deepcopy(model).requires_grad_(False)
    keys = [
        key(log, features, model),
        key(log, features, model, settings=TrainSettings(seed=1)),
        key(log, features, model, teacher=model),
        key(log, features, model, teacher=started),
        key(log, features, started),
        key(log, features, frozen),
        key(log, features, nn.Sequential(model)),
        key(log, features, model, splits=("train", "test")),
        key(ClickLog(str(tmp_path / "other")), features, model),
        key(log, others, model),
        replace(key(log, features, model), workers=2),
    ]
    assert len({found.name for found in keys}) == len(keys)


@pytest.fixture(scope="module")
def original(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    source = ModelSource(model="dcnv2", settings={"width": 4, "hidden": [16, 8]})
    settings = TrainSettings(epochs=1, batch_rows=512)
    out = tmp_path_factory.mktemp("original")
    return recipes.train(synth_log, synth_features, source, settings, out)


def made(original: Artifact, log: ClickLog, budget: str, out: Path, watch: Watch) -> Artifact:
    settings = replace(SETTINGS, budget=budget)
    measured = recipes.measure(original, log, settings)
    plan = recipes.plan(original, measured, settings)
    return recipes.compress(original, log, measured, plan, settings, out, watch=watch)


def killed_after(steps: int) -> Watch:
    left = iter(range(steps))

    def watch(report: Report) -> None:
        if report.valid is None and next(left, None) is None:
            raise Killed

    return watch


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.folder / "model.safetensors")


STAGES: dict[str, Callable[[Artifact, ClickLog, Path, Watch], Artifact]] = {
    "the same plan": lambda original, log, out, watch: made(original, log, "2x", out, watch),
    "another plan": lambda original, log, out, watch: made(original, log, "4x", out, watch),
    "the control": lambda original, log, out, watch: recipes.control(
        original, log, SETTINGS, out, watch=watch
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_goes_on_from_its_own_killed_run_and_from_no_other(
    original: Artifact, synth_log: ClickLog, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(Killed):  # in the second epoch
        made(original, synth_log, "2x", tmp_path / "out", killed_after(30))
    steps: list[Report] = []
    found = STAGES[stage](original, synth_log, tmp_path / "out", steps.append)
    resumed = next(report for report in steps if report.valid is None).epoch > 0
    assert resumed == (stage == "the same plan")
    clean = STAGES[stage](original, synth_log, tmp_path / "clean", recipes.quiet)
    wanted = weights(clean)
    assert all(tensor.equal(wanted[name]) for name, tensor in weights(found).items())
