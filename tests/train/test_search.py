"""Forms that are searched for while a model trains, from plan to artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.planning.plan import Plan
from embedcomp.recipes import forming, searching
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.progress import Watch
from embedcomp.swapping import swap
from embedcomp.train.fit import Data, Report
from embedcomp.train.settings import FAR, NEAR, TrainSettings
from tests.train.killed import Killed

# a model with a layer that decoders are folded into, and layers that read rows beside it
SOURCE = ModelSource(model="dcnv2", settings={"width": 8, "hidden": [8], "cross_layers": 1})
TWICE = TrainSettings(epochs=2, batch_rows=512, checkpoint_rows=1024, embedding_l2=50.0)
STEPS = 12_000 // 512  # of an epoch, at most
METHODS = ["optembed", "mixed_precision"]


@pytest.fixture(scope="module")
def original(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder, well = tmp_path_factory.mktemp("search"), replace(TWICE, batch_rows=256)
    return recipes.train(synth_log, synth_features, SOURCE.complete(), well, folder)


def asked(original: Artifact, method: str, **settings: Any) -> CompressSettings:
    """Tables an eighth of their size by a method that searches, the dense part as it is."""
    sizes = model_bytes(original.model())
    values = {
        "budget": str(sizes["dense"] + sizes["tables"] // 8),
        "methods": (method,),
        "rest": ("keep",),
        "train": TWICE,
        "measure_rows": 2000,
        "held_rows": 1000,
    }
    return CompressSettings(**{**values, **settings})


@pytest.fixture(scope="module")
def measured(synth_log: ClickLog, original: Artifact) -> Statistics:
    return recipes.measure(original, synth_log, asked(original, METHODS[0]))


@pytest.fixture(scope="module")
def plans(original: Artifact, measured: Statistics) -> dict[str, Plan]:
    planning = recipes.Planning(original, measured)
    return {method: planning.plan(asked(original, method)) for method in METHODS}


Makes = Callable[..., Artifact]


@pytest.fixture(scope="module")
def made(
    synth_log: ClickLog, original: Artifact, measured: Statistics, plans: dict[str, Plan]
) -> Makes:
    """Carries the plan of a method out."""

    def make(method: str, out: Path, watch: Watch = recipes.quiet, **more: Any) -> Artifact:
        settings = asked(original, method, **more)
        given = (original, synth_log, measured, plans[method])
        return recipes.compress(*given, settings, out, watch=watch)

    return make


@pytest.fixture(scope="module")
def artifacts(made: Makes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return {method: made(method, tmp_path_factory.mktemp(method)) for method in METHODS}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_search_says_what_is_served_within_the_plan(
    method: str, original: Artifact, plans: dict[str, Plan], artifacts: dict[str, Artifact]
) -> None:
    plan, small = plans[method], artifacts[method]
    settled = small.plan
    assert settled is not None
    assert module_bytes(small.model()) == settled.bytes_after == small.manifest.bytes["total"]
    assert settled.bytes_after <= plan.bytes_after <= plan.budget_bytes
    assert not small.manifest.needs_code
    assert settled.bytes_after == settled.bytes_before - sum(
        p.bytes_before - p.bytes_after for p in settled.layers
    )
    before = {p.layer: p.settings for p in plan.layers if p.method == method}
    after = {p.layer: p.settings for p in settled.layers if p.method == method}
    assert before.keys() == after.keys() and before != after
    assert torch.tensor([p.loss for p in settled.layers]).isfinite().all()
    history = small.origin.training["history"]
    searched = [entry["epoch"] for entry in history if entry.get("stage") == "search"]
    final = [entry["epoch"] for entry in history if "stage" not in entry]
    assert max(searched) == max(final) == 1 and len(searched) + len(final) == len(history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("optembed", STEPS // 2),
        ("mixed_precision", STEPS + STEPS // 2),
        pytest.param("mixed_precision", STEPS // 2, marks=pytest.mark.matrix),
        pytest.param("optembed", STEPS + STEPS // 2, marks=pytest.mark.matrix),
    ],
)
def test_a_run_that_is_killed_in_either_stage_gives_the_same_artifact(
    step: int, method: str, made: Makes, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    steps, said = 0, set()

    def watch(state: Any) -> None:
        nonlocal steps
        steps += isinstance(state, Report) and state.valid is None
        said.add(state.step)
        if steps == step:
            raise Killed

    with pytest.raises(Killed):
        made(method, tmp_path, watch)
    assert ("training the compressed form" in said) is (step > STEPS)
    resumed, whole = made(method, tmp_path), artifacts[method]
    assert resumed.plan == whole.plan
    before, after = whole.tensors(), resumed.tensors()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_search_that_changes_numbers_much_begins_far_from_its_end_in_both_stages(
    method: str, made: Makes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others begin as far from it as their plan's loss is, once its settings are found."""
    monkeypatch.setattr(forming, "FAR_LOSS", 1e-4)
    small = made(method, tmp_path, train=replace(TWICE, rate_factor=None))
    assert small.plan is not None
    factors = FAR, FAR
    if method == "mixed_precision":
        factors = NEAR, small.plan.loss / 1e-4
        assert NEAR < factors[1] < FAR
    history = small.origin.training["history"]
    assert tuple(one["rate_factor"] for one in history if "rate_factor" in one) == factors


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_from_the_log_a_search_takes_nothing_from_the_model(
    method: str,
    made: Makes,
    plans: dict[str, Plan],
    artifacts: dict[str, Artifact],
    tmp_path: Path,
) -> None:
    small = made(method, tmp_path, from_log=True)
    assert small.plan is not None
    assert module_bytes(small.model()) == small.plan.bytes_after <= plans[method].bytes_after
    assert small.plan != artifacts[method].plan


@pytest.mark.slow
@pytest.mark.parametrize("start", ["searched", "initial"])
def test_the_form_begins_with_what_the_search_left(
    start: str,
    synth_log: ClickLog,
    original: Artifact,
    measured: Statistics,
    plans: dict[str, Plan],
    tmp_path: Path,
) -> None:
    """Or with what the search began with; either way the search says which rows are kept."""
    model, plan = original.model(), plans["optembed"]
    layers = [replace(p, settings={**p.settings, "start": start}) for p in plan.layers]
    kept = [p if p.method == "optembed" else q for p, q in zip(layers, plan.layers, strict=True)]
    settings = asked(original, "optembed")
    begin = searching.Start(
        model, recipes.layers_of(original, model), measured, replace(plan, layers=tuple(kept))
    )
    priced = measured.measured(begin.found).layers
    held = recipes.held_out(original, synth_log, settings)
    once = replace(TWICE, epochs=1)
    data = Data(synth_log, original.features)
    after = searching.search(begin, priced, None, data, held, once, tmp_path, recipes.quiet)
    assert after.plan.bytes_after <= plan.bytes_after
    trained = after.found.layers["out"].weight
    assert torch.equal(trained, begin.found.layers["out"].weight) is (start == "initial")
    for planned in (p for p in kept if p.method == "optembed"):
        before, layer = begin.found.layers[planned.layer], after.found.layers[planned.layer]
        assert layer.searched is not None and layer.searched.stored.master is not None
        rows = layer.searched.stored.master
        assert not torch.equal(rows, before.weight)
        assert torch.equal(layer.weight, before.weight if start == "initial" else rows)
    compressed = swap.apply(after.model, after.plan, after.found, measured)
    assert module_bytes(compressed) == after.plan.bytes_after


def test_a_third_of_the_epochs_is_the_search() -> None:
    for epochs, wanted in ((1, (1, 1)), (2, (1, 1)), (3, (1, 2)), (9, (3, 6)), (10, (3, 7))):
        first, last = searching.stages(replace(TWICE, epochs=epochs))
        assert (first.epochs, last.epochs) == wanted
