"""Plans in which tables share a decoder, all the way to scores and back from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import embedcomp
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BudgetTooSmall
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.planning import planner
from embedcomp.planning.plan import Plan
from embedcomp.planning.search import Known
from embedcomp.planning.sharing import groups
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.swapping import swap
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.optim import optimizers
from embedcomp.train.settings import TrainSettings
from tests.artifacts import scored_alike
from tests.cases import DIM, B, dlrm

pytestmark = pytest.mark.slow  # all share models that take long to make

WIDTH, RANK = 8, 2
SOURCE = ModelSource(model="dcnv2", settings={"width": WIDTH, "hidden": [8], "cross_layers": 1})
APART = "user_id"  # the table whose rows lie in a space of their own
BOTH = ("low_rank", "low_rank_group")


def write_weights(features: Features, file: Path, seed: int) -> None:
    """Tables of few rows in one space of RANK dimensions, but for one of many dimensions."""
    model, generator = SOURCE.complete().build(features, seed), torch.manual_seed(seed)
    shared = torch.randn(RANK, WIDTH, generator=generator) / WIDTH**0.5
    for name, module in model.named_modules():
        if isinstance(module, nn.EmbeddingBag):
            rows = module.num_embeddings
            own = name.endswith(APART)
            codes = torch.randn(rows, WIDTH if own else RANK, generator=generator)
            scales = 0.5 ** torch.arange(WIDTH) if own else shared
            module.weight.data = codes * scales if own else codes @ shared
    save_file(model.state_dict(), file)


def load(log: ClickLog, features: Features, folder: Path, seed: int) -> Artifact:
    weights = folder / f"{seed}.safetensors"
    write_weights(features, weights, seed)
    none, out = TrainSettings(epochs=0), folder / f"original_{seed}"
    return recipes.train(log, features, SOURCE.complete(), none, out, start=weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grouping")


@pytest.fixture(scope="module")
def original(synth_log: ClickLog, synth_features: Features, folder: Path) -> Artifact:
    return load(synth_log, synth_features, folder, 0)


def asked(methods: tuple[str, ...], **settings: Any) -> CompressSettings:
    return CompressSettings(
        **{"budget": "20x", "methods": methods, "measure_rows": 2000, **settings}
    )


@pytest.fixture(scope="module")
def planning(synth_log: ClickLog, original: Artifact) -> recipes.Planning:
    measured = recipes.measure(original, synth_log, asked(BOTH))
    return recipes.Planning(original, measured)


@pytest.fixture(scope="module")
def plan(planning: recipes.Planning) -> Plan:
    return planning.plan(asked(BOTH))


@pytest.fixture(scope="module")
def made(synth_log: ClickLog, original: Artifact, plan: Plan, folder: Path) -> Artifact:
    measured = recipes.measure(original, synth_log, asked(BOTH))
    out = folder / "small"
    return recipes.compress(original, synth_log, measured, plan, asked(BOTH), out)


def bags(model: nn.Module) -> dict[str, Any]:
    return dict(model.embeddings.embedding_bags.items())


def names(plan: Plan) -> set[str]:
    (group,) = groups(plan)
    return {name.rpartition(".")[2] for name in group}


def decoders(model: nn.Module, plan: Plan) -> set[int]:
    return {id(bags(model)[name].decode.stored) for name in names(plan)}


def test_tables_share_a_decoder_where_that_pays(planning: recipes.Planning, plan: Plan) -> None:
    alone = planning.plan(asked(("low_rank",)))
    assert plan.loss < 0.8 * alone.loss and plan.bytes_after <= plan.budget_bytes
    assert len(names(plan)) > 2 and APART not in names(plan)
    assert {p.method for p in plan.tables} >= set(BOTH)
    shared = [p.settings for p in plan.tables if p.method == "low_rank_group"]
    assert {s["most"] for s in shared} == {max(s["rank"] for s in shared)} == {RANK}


def test_a_bound_on_the_loss_is_met_in_fewer_bytes(planning: recipes.Planning, plan: Plan) -> None:
    known: Known = {}

    def least(methods: tuple[str, ...]) -> int:
        model, found, single = planning.model, planning.found, plan.single_valued
        given = {"most_loss": plan.loss, "known": known}
        made = planner.plan(model, found, Statistics(), None, methods, single, **given)
        return made.bytes_after

    sizes = [least(BOTH), least(("low_rank",))]
    assert sizes[0] <= 1.02 * plan.bytes_after and sizes[0] < sizes[1]


def test_nothing_is_shared_where_that_does_not_pay(planning: recipes.Planning) -> None:
    generous = asked(BOTH, budget="1x")
    assert groups(planning.plan(generous)) == []


def test_the_smallest_plan_counts_its_decoder(planning: recipes.Planning) -> None:
    with pytest.raises(BudgetTooSmall) as error:
        planning.plan(asked(BOTH, budget="100B"))
    smallest = error.value.smallest
    assert planning.plan(asked(BOTH, budget=f"{smallest}B")).bytes_after <= smallest


def test_the_decoder_is_counted_once(plan: Plan, made: Artifact) -> None:
    model = made.model()
    assert len(decoders(model, plan)) == 1
    tables = {p.layer.rpartition(".")[2]: p for p in plan.tables}
    holder, *others = (name for name in tables if name in names(plan))
    decoder = 2 * WIDTH * RANK  # float16
    assert tables[holder].bytes_after == module_bytes(bags(model)[holder])
    for name in others:
        assert tables[name].bytes_after == module_bytes(bags(model)[name]) - decoder
    assert model_bytes(model)["total"] == plan.bytes_after == made.manifest.bytes["total"]
    apart = [module_bytes(module) for module in bags(model).values()]
    assert model_bytes(model)["tables"] == sum(apart) - decoder * len(others)


def test_the_file_holds_the_decoder_once(plan: Plan, made: Artifact) -> None:
    with safe_open(made.tensors_file, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert sum(t.nbytes for t in stored.values()) == plan.bytes_after
    held = [n for n in stored if n.endswith("decode.stored.stored")]
    assert sum(any(f".{name}." in n for name in names(plan)) for n in held) == 1


def test_it_comes_back_from_disk_bit_for_bit(
    synth_log: ClickLog, original: Artifact, plan: Plan, made: Artifact
) -> None:
    model, measured = original.model(), recipes.measure(original, synth_log, asked(BOTH))
    carried_out = made.plan  # with the bias that was fitted
    assert carried_out is not None
    wanted = swap.apply(model, carried_out, recipes.layers_of(original, model), measured).eval()
    found = Artifact.open(made.folder).model()
    assert len(decoders(wanted, plan)) == len(decoders(found, plan)) == 1
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_scores_are_the_models(
    synth_log: ClickLog, made: Artifact, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scored_alike(synth_log, made, engine, monkeypatch).std() > 1e-3


def test_an_old_plan_is_carried_out_on_new_weights(
    synth_log: ClickLog, synth_features: Features, made: Artifact, plan: Plan, folder: Path
) -> None:
    load(synth_log, synth_features, folder, 7)  # the tables' common space is another one
    again, drift = recipes.recompress(
        made, folder / "7.safetensors", synth_log, asked(("svd",)), folder / "again"
    )
    assert again.plan is not None and groups(again.plan) == groups(plan)
    assert again.manifest.bytes == made.manifest.bytes
    model = again.model()
    assert len(decoders(model, plan)) == 1
    other = Artifact.open(folder / "original_7").model()
    for name in names(plan):
        off = bags(model)[name].to_float() - bags(other)[name].weight
        assert off.norm() < 0.3 * bags(other)[name].weight.norm()
    assert drift.now > 0


def test_tuning_trains_the_one_decoder_and_it_is_saved_once(
    synth_log: ClickLog, original: Artifact, plan: Plan, folder: Path
) -> None:
    settings = asked(
        BOTH, tune=TuneSettings(epochs=1, batch_rows=512, learning_rate=0.01, distil=0.0)
    )
    measured = recipes.measure(original, synth_log, settings)
    tuned = recipes.compress(original, synth_log, measured, plan, settings, folder / "tuned")
    assert tuned.manifest.bytes["total"] == plan.bytes_after
    model = tuned.model()
    assert len(decoders(model, plan)) == 1
    before = swap.apply(
        original.model(), plan, recipes.layers_of(original, original.model()), measured
    )
    name = min(names(plan))
    rows = [bags(m)[name].decode.stored.to_float() for m in (before, model)]
    assert rows[0].shape == rows[1].shape and not torch.equal(*rows)


def test_no_optimizer_sees_the_decoder_twice(
    synth_log: ClickLog, original: Artifact, plan: Plan
) -> None:
    model = original.model()
    measured = recipes.measure(original, synth_log, asked(BOTH))
    compressed = swap.apply(model, plan, recipes.layers_of(original, model), measured)
    swap.thaw(compressed)
    one = bags(compressed)[min(names(plan))].decode.stored.master
    made = optimizers(compressed, TrainSettings(), 1000)
    trained = [p for o in made for group in o.param_groups for p in group["params"]]
    assert sum(p is one for p in trained) == 1 and len({id(p) for p in trained}) == len(trained)


WRITTEN = {
    "*embedding_bags.t1": {"method": "low_rank_group", "rank": 2, "most": 4},
    "*embedding_bags.t2": {
        "method": "low_rank_group",
        "rank": 4,
        "most": 4,
        "storage": "column_int8",
    },
    "*embedding_bags.t3": {"method": "low_rank", "rank": 3},
}


def test_in_place_a_group_is_swapped_trained_saved_loaded_and_taken_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case, fresh = dlrm(), dlrm()
    model, inputs = case.model.eval(), case.inputs(1)

    def scores(of: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return case.score(of.eval(), inputs)

    before, state = scores(model), {n: t.clone() for n, t in model.state_dict().items()}
    plan = embedcomp.swap_(model, WRITTEN)
    assert plan.bytes_after == module_bytes(model)
    tables = [model.get_submodule(p.layer) for p in plan.layers]
    assert tables[0].decode.stored is tables[1].decode.stored
    assert tables[0].decode.stored_bias is not tables[1].decode.stored_bias
    swapped = scores(model)
    embedcomp.thaw_(model)
    torch.testing.assert_close(scores(model), swapped)
    case.score(model.train(), inputs).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    trained = scores(model)
    assert not torch.equal(trained, swapped)
    embedcomp.freeze_(model)
    assert torch.equal(scores(model), trained)
    artifact = embedcomp.save(model, tmp_path / "m", score=case.score, example=inputs)
    found = embedcomp.Scorer(artifact).score(inputs)
    np.testing.assert_allclose(found, torch.sigmoid(trained).numpy(), rtol=0, atol=1e-6)
    embedcomp.load_(fresh.model, tmp_path / "m")
    loaded = [fresh.model.get_submodule(p.layer) for p in plan.layers]
    assert loaded[0].decode.stored is loaded[1].decode.stored
    assert module_bytes(fresh.model) == plan.bytes_after
    assert torch.equal(scores(fresh.model), trained)
    embedcomp.restore_(model)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert torch.equal(scores(model), before)


def test_tables_share_only_with_what_is_decoded_alike() -> None:
    model = dlrm().model
    alike = {"method": "low_rank_group", "rank": 2, "most": 4}
    for other in ({"most": 3}, {"storage": "float32"}, {"weighting": "output"}):
        plan = embedcomp.swap_(model, {"*.t1": alike, "*.t2": {**alike, **other}, "*.t3": alike})
        assert [len(group) for group in groups(plan)] == [2, 1]
        assert plan.bytes_after == module_bytes(model)
        embedcomp.restore_(model)


def test_a_group_is_planned_for_a_users_model_in_place() -> None:
    torch.manual_seed(0)
    case = dlrm()
    shared = torch.randn(1, DIM)
    for module in case.model.modules():
        if isinstance(module, nn.EmbeddingBag):
            module.weight.data = torch.randn(len(module.weight), 1) @ shared
    batches = [(case.inputs(seed), torch.zeros(B)) for seed in range(2, 6)]
    tables = sum(module_bytes(m) for m in case.model.modules() if isinstance(m, nn.EmbeddingBag))
    budget = module_bytes(case.model) - tables + 3 * (60 * 2 + 2 * DIM) + 2 * DIM
    plan = embedcomp.plan(case.model, batches, budget=budget, score=case.score, methods=BOTH)
    assert [len(group) for group in groups(plan)] == [3] and plan.bytes_after == budget
    embedcomp.swap_(case.model, plan)
    assert module_bytes(case.model) == budget
