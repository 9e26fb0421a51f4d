"""Names of checkpoints: a run goes on from its own and from no other's."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from embedcomp import recipes
from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.planning.plan import Plan
from embedcomp.swapping import tune
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.fit import Data, Report, Watch
from embedcomp.train.key import RunKey
from embedcomp.train.settings import TrainSettings
from tests.train.killed import Killed
from tests.train.test_train import small_model

SPLITS = ("train", "valid")


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
    others = Features.from_counts(log, count(log, log.pieces("train")), 30)
    started = copy.deepcopy(model)
    nn.init.ones_(started.out.bias)
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
        key(log, features, model, share=0.5),
        key(ClickLog(str(tmp_path / "other")), features, model),
        key(log, others, model),
    ]
    names = [found.name for found in keys]
    assert [names.index(name) for name in names] == [*range(len(names))]


def killed_in_the_second_epoch(report: Report) -> None:
    if report.epoch == 1 and report.rows_done > 3000:
        raise Killed


@pytest.fixture(scope="module")
def plans(synth_log: ClickLog, synth_features: Features) -> dict[str, Plan]:
    """Two plans of one model."""
    model = small_model(synth_features)
    read = in_order(synth_log, synth_features, synth_log.pieces("train"), 512, 1024)
    batches = [((batch.dense, batch.sparse), batch.labels) for batch in read]
    methods = {"bytes": ["row_int8", "dense_int8"], "half bytes": ["row_int4", "dense_int8"]}
    return {
        name: embedcomp.plan(model, batches, "1.5x", score=score, methods=names)
        for name, names in methods.items()
    }


def score(model: nn.Module, inputs: tuple[Tensor, KeyedJaggedTensor]) -> Tensor:
    found: Tensor = model(*inputs)
    return found


def stage(
    name: str, plans: dict[str, Plan], data: Data, folder: Path, watch: Watch = recipes.quiet
) -> dict[str, Tensor]:
    """Weights that tuning one of the plans, or the control, ends with."""
    settings = TuneSettings(epochs=2, batch_rows=512)
    original = small_model(data.features)
    if name == "control":
        tune.control(original, data, settings, folder, watch)
        return original.state_dict()
    compressed = small_model(data.features)
    embedcomp.swap_(compressed, plans[name])
    tune.tune(compressed, original, data, settings, folder, watch)
    return compressed.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bytes", "half bytes", "control"])
def test_a_stage_goes_on_from_its_own_killed_run_and_from_no_other(
    synth_log: ClickLog,
    synth_features: Features,
    plans: dict[str, Plan],
    tmp_path: Path,
    name: str,
) -> None:
    data = Data(synth_log, synth_features)
    with pytest.raises(Killed):
        stage("bytes", plans, data, tmp_path / "out", killed_in_the_second_epoch)
    seen: list[Report] = []
    found = stage(name, plans, data, tmp_path / "out", seen.append)
    assert (seen[0].epoch > 0) == (name == "bytes")
    wanted = stage(name, plans, data, tmp_path / "clean")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
