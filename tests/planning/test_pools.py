"""Plans in which tables read one pool, and forms that are trained, from plan to artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.planning.plan import Plan
from embedcomp.planning.sharing import groups
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.progress import Watch
from embedcomp.swapping import swap
from embedcomp.train.fit import Report
from embedcomp.train.settings import TrainSettings
from tests.train.killed import Killed

SOURCE = ModelSource(model="dcnv2", settings={"width": 8, "hidden": [8], "cross_layers": 1})
ONCE = TrainSettings(epochs=1, batch_rows=512, checkpoint_rows=1024, embedding_l2=50.0)
FASTER = replace(ONCE, batch_rows=256, learning_rate=3e-3, table_learning_rate=3e-3)


@pytest.fixture(scope="module")
def original(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder, well = tmp_path_factory.mktemp("pools"), replace(FASTER, epochs=3)
    return recipes.train(synth_log, synth_features, SOURCE.complete(), well, folder)


def asked(original: Artifact, ratio: float, **settings: Any) -> CompressSettings:
    """Tables smaller by a ratio, by one pool; the dense part as it is."""
    sizes = model_bytes(original.model())
    budget = sizes["dense"] + int(sizes["tables"] / ratio)
    values = {"methods": ("unified",), "rest": ("keep",), "train": ONCE, "measure_rows": 2000}
    return CompressSettings(budget=str(budget), **{**values, **settings})


@pytest.fixture(scope="module")
def measured(synth_log: ClickLog, original: Artifact) -> Statistics:
    return recipes.measure(original, synth_log, asked(original, 8))


@pytest.fixture(scope="module")
def plan(original: Artifact, measured: Statistics) -> Plan:
    return recipes.Planning(original, measured).plan(asked(original, 8))


Makes = Callable[..., Artifact]


@pytest.fixture(scope="module")
def made(synth_log: ClickLog, original: Artifact, measured: Statistics, plan: Plan) -> Makes:
    """Carries the plan out on a model."""

    def make(
        out: Path, of: Artifact = original, watch: Watch = recipes.quiet, **more: Any
    ) -> Artifact:
        settings = asked(original, 8, **more)
        known = measured if of is original else recipes.measure(of, synth_log, settings)
        return recipes.compress(of, synth_log, known, plan, settings, out, watch=watch)

    return make


@pytest.fixture(scope="module")
def small(made: Makes, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made(tmp_path_factory.mktemp("small"))


def stored(model: nn.Module, plan: Plan) -> set[int]:
    (names,) = groups(plan)
    return {id(model.get_submodule(name).stored) for name in names}


@pytest.mark.slow
def test_a_pool_takes_most_of_what_tables_may_take(plan: Plan) -> None:
    (names,) = groups(plan)
    pooled = [p for p in plan.layers if p.layer in names]
    assert len(names) > 1 and {p.method for p in pooled} == {"unified"}
    assert plan.bytes_after <= plan.budget_bytes
    dense = sum(p.bytes_after for p in plan.linears)
    tables = sum(p.bytes_after for p in plan.tables)
    assert sum(p.bytes_after for p in pooled) > 0.5 * tables and dense > 0
    assert len({str(p.typed_settings.pool) for p in pooled}) == 1


@pytest.mark.slow
def test_the_pool_is_one_in_memory_in_bytes_and_on_disk(small: Artifact, plan: Plan) -> None:
    again = small.model()
    assert len(stored(again, plan)) == 1
    assert module_bytes(again) == plan.bytes_after == small.manifest.bytes["total"]


@pytest.mark.slow
def test_a_run_that_is_killed_while_the_form_trains_gives_the_same_artifact(
    made: Makes, small: Artifact, tmp_path: Path
) -> None:
    steps = 0

    def watch(report: Any) -> None:
        nonlocal steps
        steps += isinstance(report, Report) and report.valid is None
        if steps == 9:
            raise Killed

    with pytest.raises(Killed):
        made(tmp_path, watch=watch)
    resumed = made(tmp_path)
    before, after = small.tensors(), resumed.tensors()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


@pytest.mark.slow
def test_from_the_log_nothing_is_taken_from_the_model(
    synth_log: ClickLog, original: Artifact, made: Makes, tmp_path: Path
) -> None:
    """Another model of the same shape gives the same artifact, and the same model another one."""
    other = recipes.train(
        synth_log,
        original.features,
        original.source,
        replace(ONCE, epochs=0, seed=5),
        tmp_path / "other",
    )
    first = made(tmp_path / "a", from_log=True).tensors()
    second = made(tmp_path / "b", other, from_log=True).tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    seeded = replace(ONCE, seed=1)
    third = made(tmp_path / "c", from_log=True, train=seeded).tensors()
    assert not all(torch.equal(first[name], third[name]) for name in first)


@pytest.mark.slow
def test_a_form_learns_the_scores_of_its_model(
    synth_log: ClickLog,
    original: Artifact,
    measured: Statistics,
    plan: Plan,
    made: Makes,
    tmp_path: Path,
) -> None:
    longer = replace(FASTER, epochs=4, distil=1.0)
    found = recipes.layers_of(original, original.model())
    begun = swap.apply(original.model(), plan, found, measured)
    batches = recipes.rows_of(original, synth_log, "valid", 2000)

    @torch.no_grad()
    def off(form: nn.Module) -> float:
        pairs = [
            [model.eval()(batch.dense, batch.sparse).sigmoid() for batch in batches]
            for model in (form, original.model())
        ]
        one, other = (torch.cat(scores) for scores in pairs)
        return float((one - other).square().mean())

    after = made(tmp_path, train=longer)
    assert off(after.model()) < 0.5 * off(begun)


def test_methods_that_train_are_offered_with_training_alone() -> None:
    with pytest.raises(BadSettings, match="hashed makes is good only once it is trained"):
        CompressSettings(budget="5x", methods=("hashed",))
    with pytest.raises(BadSettings, match="give --train-epochs"):
        CompressSettings(budget="5x", from_log=True)
    without = CompressSettings(budget="5x").goal.methods
    trained = CompressSettings(budget="5x", train=ONCE).goal.methods
    assert set(trained) > set(without) and "unified" in set(trained) - set(without)
