"""Compressed layers in models that know nothing of this project."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, data_parallel
from torchrec.distributed.types import ShardingEnv
from torchrec.inference.modules import quantize_inference_model
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

import embedcomp
from embedcomp.errors import BadLog, BadModel, BadSettings
from embedcomp.methods import low_rank, row_int8
from embedcomp.planning.bound import worst
from tests.cases import (
    CASES,
    DIM,
    ROWS,
    TABLES,
    B,
    Case,
    Plain,
    bags,
    config,
    dlrm,
    kjt,
    plain,
    sequences,
)


@pytest.fixture(params=CASES, ids=lambda case: case.__name__.lstrip("_"))
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    made: Case = request.param()
    made.model.eval()
    with torch.no_grad():  # max_norm changes a table when it is read
        made.score(made.model, made.inputs(0))
    return made


def scores(case: Case, seed: int = 1) -> Tensor:
    with torch.no_grad():
        return case.score(case.model, case.inputs(seed))


def batches(case: Case) -> list[tuple[Any, Tensor]]:
    return [(case.inputs(seed), torch.zeros(B)) for seed in range(2, 6)]


def test_a_method_is_swapped_in_wherever_it_is_taken_or_where_a_filter_says():
    case = dlrm()
    before = copy.deepcopy(case.model.state_dict())
    every = [e.layer for e in embedcomp.explain(case.model) if "low_rank" in e.methods]
    plan = embedcomp.swap_(case.model, low_rank.Settings(rank=1))
    assert {p.layer for p in plan.layers} == set(every)
    assert {(p.method, p.settings["rank"]) for p in plan.layers} == {("low_rank", 1)}
    embedcomp.restore_(case.model)
    assert same(case.model.state_dict(), before)
    seen = []

    def is_table(module, name):
        seen.append(name)
        return isinstance(module, nn.EmbeddingBag)

    plan = embedcomp.swap_(case.model, "row_int8", filter_fn=is_table)
    assert {p.kind for p in plan.layers} == {"table"} and set(every) <= set(seen)
    embedcomp.restore_(case.model)
    with pytest.raises(BadSettings, match="is for no layer"):
        embedcomp.swap_(case.model, row_int8.Settings(), filter_fn=lambda module, name: False)
    with pytest.raises(BadSettings, match="names its layers already"):
        embedcomp.swap_(case.model, {"*": "row_int8"}, filter_fn=is_table)
    with pytest.raises(BadSettings, match="neither a method's name"):
        embedcomp.swap_(case.model, 8)


def test_a_pattern_may_have_a_methods_settings():
    case = dlrm()
    plan = embedcomp.swap_(case.model, {TABLES: low_rank.Settings(rank=2, storage="float16")})
    assert {(p.settings["rank"], p.settings["storage"]) for p in plan.layers} == {(2, "float16")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_latency_is_kept_to_that_a_calibrated_machine_is_predicted_to_take(
    even_machine: None,
):
    case = dlrm()
    before = copy.deepcopy(case.model.state_dict())
    common = {"score": case.score, "methods": ("low_rank", "row_int8", "half")}
    slow = embedcomp.plan(case.model, batches(case), latency_budget="1000ms@64", **common)
    assert {p.method for p in slow.layers} == {"keep"}
    fast = embedcomp.plan(case.model, batches(case), "2x", latency_budget="1.2x@64", **common)
    assert fast.bytes_after <= fast.bytes_before // 2
    assert fast.microseconds <= fast.microseconds_before / 1.2 + 0.1
    assert fast.measured_microseconds and fast.measured_microseconds_before
    assert same(case.model.state_dict(), before)
    embedcomp.swap_(case.model, fast)
    with pytest.raises(BadModel, match="whose work is what a latency is predicted from"):
        made = sequences()
        pairs = [(made.inputs(seed), torch.zeros(B)) for seed in (1, 2)]
        embedcomp.plan(made.model, pairs, latency_budget="2x@1", score=made.score)


def test_full_rank_gives_the_same_scores_and_restoring_the_same_bits(case: Case):
    before, state = scores(case), copy.deepcopy(case.model.state_dict())
    layers = [e.layer for e in embedcomp.explain(case.model) if e.methods]
    wide = {
        e.layer: {"method": "low_rank", "rank": min(e.shape)}
        for e in embedcomp.explain(case.model)
        if "low_rank" in e.methods
    }
    assert wide and set(wide) <= set(layers)
    embedcomp.swap_(case.model, wide)
    assert all(
        "Compressed" in str(case.model.get_submodule(n))
        or "LowRank" in str(case.model.get_submodule(n))
        for n in wide
    )
    torch.testing.assert_close(scores(case), before, rtol=1e-4, atol=1e-4)
    embedcomp.restore_(case.model)
    after = case.model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert torch.equal(scores(case), before)


def test_a_plan_keeps_to_its_budget_and_the_model_still_trains(
    case: Case, request: pytest.FixtureRequest
):
    """One of the models is planned with all methods that pay."""
    few = None if request.node.callspec.id == "dlrm" else ("row_int8", "row_int4", "svd")
    before = scores(case)
    layers = [e for e in embedcomp.explain(case.model) if e.methods]
    total = sum(t.nbytes for t in (*case.model.parameters(), *case.model.buffers()))
    budget = total - sum(e.bytes for e in layers) * 2 // 5
    given = {"score": case.score, "methods": few}
    plan = embedcomp.plan(case.model, batches(case), budget=budget, **given)
    assert torch.equal(scores(case), before)  # planning changes nothing
    embedcomp.swap_(case.model, plan)
    size = sum(t.nbytes for t in (*case.model.parameters(), *case.model.buffers()))
    assert size == plan.bytes_after <= budget
    swapped = scores(case)
    error, spread = (swapped - before).square().mean(), before.var()
    assert float(error) < 0.1 * float(spread)
    embedcomp.thaw_(case.model)
    torch.testing.assert_close(scores(case), swapped)
    dense, sparse = [], []
    for parameter in case.model.parameters():
        (sparse if parameter.dim() == 2 and len(parameter) == ROWS else dense).append(parameter)
    optimizer = torch.optim.SGD([*dense, *sparse], lr=0.01)
    case.model.train()
    case.score(case.model, case.inputs(7)).square().mean().backward()
    optimizer.step()
    case.model.eval()
    trained = scores(case)
    assert not torch.equal(trained, swapped)
    embedcomp.freeze_(case.model)
    torch.testing.assert_close(scores(case), trained)
    embedcomp.restore_(case.model)
    assert torch.equal(scores(case), before)


@pytest.mark.slow
def test_a_loss_of_auc_is_kept_to_instead_of_a_budget():
    torch.manual_seed(0)
    made = dlrm()
    made.model.eval()
    with torch.no_grad():  # the scores are spread, and the labels follow them
        made.model.over_arch.model[-1].weight.mul_(20)
        logits = [made.score(made.model, made.inputs(seed)) for seed in range(2, 12)]
    labelled = [
        (made.inputs(seed), (torch.rand(B) < torch.sigmoid(z - z.mean())).float())
        for seed, z in zip(range(2, 12), logits, strict=True)
    ]
    sizes, few = [], {"methods": ["svd", "row_int4"]}  # plans are made again and again
    for most in (0.0005, 0.02):
        plan = embedcomp.plan(made.model, labelled, score=made.score, max_auc_loss=most, **few)
        assert worst(plan) <= most and plan.max_auc_loss == most
        sizes.append(plan.bytes_after)
    assert sizes[0] > sizes[1]
    embedcomp.swap_(made.model, plan)
    z, labels = torch.cat(logits), torch.cat([labels for _, labels in labelled])
    after = torch.cat([scores(made, seed) for seed in range(2, 12)])
    lost = roc_auc_score(labels, z) - roc_auc_score(labels, after)
    assert lost == pytest.approx(plan.outcome.auc_loss, abs=1e-6)


def test_the_mean_score_stays_in_place():
    torch.manual_seed(0)
    made = dlrm()
    made.model.eval()
    bias = made.model.over_arch.model[-1].bias
    before, kept = torch.sigmoid(scores(made, 2)).mean(), bias.clone()
    given = [(made.inputs(2), torch.zeros(B))]
    plan = embedcomp.plan(made.model, given, "8x", score=made.score, methods=["row_int2", "svd"])
    assert torch.equal(bias, kept) and plan.outcome.shift != 0
    embedcomp.swap_(made.model, plan)
    assert torch.sigmoid(scores(made, 2)).mean() == pytest.approx(float(before), rel=1e-4)
    embedcomp.restore_(made.model)
    assert torch.equal(made.model.over_arch.model[-1].bias, kept)


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, "neither was"), ({"budget": "2x", "max_auc_loss": 0.01}, "both were")],
)
def test_a_plan_needs_a_budget_or_a_loss_of_auc(given, told):
    made = plain()
    with pytest.raises(BadSettings, match=f"either a budget or max_auc_loss, but {told}"):
        embedcomp.plan(made.model, batches(made), score=made.score, **given)


def test_a_loss_of_auc_needs_clicks():
    made = plain()
    with pytest.raises(BadLog, match="0 of the 192 rows that were scored are clicked"):
        embedcomp.plan(made.model, batches(made), score=made.score, max_auc_loss=0.01)


def test_a_collection_keeps_keys_order_widths_and_configs():
    model = nn.Sequential(bags())
    inputs = kjt(0, ("d", "a", "c", "b"))
    before, configs = model(inputs), model[0].embedding_bag_configs()
    embedcomp.swap_(model, {TABLES: {"method": "low_rank", "rank": 2, "storage": "column_int8"}})
    after = model(inputs)
    assert after.keys() == before.keys()
    assert after.length_per_key() == before.length_per_key()
    assert after.values().dtype == before.values().dtype
    assert model[0].embedding_bag_configs() == configs
    reordered = inputs.permute([1, 3, 0, 2])
    assert torch.equal(model(reordered).values(), after.values())


def test_ids_out_of_range_raise_as_they_do_in_the_original():
    model = nn.Sequential(bags())
    embedcomp.swap_(model, {TABLES: "row_int8"})
    bad = kjt(0, ("a", "b", "c", "d"))
    bad.values()[0] = ROWS
    with pytest.raises((IndexError, RuntimeError)):
        model(bad)


def test_an_untouched_collection_can_still_be_quantized():
    case = dlrm()
    embedcomp.swap_(case.model, {"dense_arch*": {"method": "low_rank", "rank": 2}})
    quantized = quantize_inference_model(copy.deepcopy(case.model))
    assert case.score(quantized, case.inputs(0)).shape == (B,)


@pytest.mark.slow
def test_tables_in_any_order_are_offered_tiers_by_what_is_looked_up():
    """Ids that are drawn more often have better rows, wherever they are in the table."""
    generator = torch.manual_seed(0)
    rows = 400
    often = torch.randperm(rows, generator=generator)[:50]
    model = nn.Sequential(nn.EmbeddingBag(rows, DIM, mode="sum"), nn.Linear(DIM, 1)).eval()
    before = model[0].weight.detach().clone()

    def inputs() -> Tensor:
        rare = torch.randint(rows, (500, 2), generator=generator)
        return torch.cat([often[torch.randint(50, (500, 4), generator=generator)], rare], 1)

    plan = embedcomp.plan(
        model,
        [(inputs(), torch.zeros(500)) for _ in range(4)],
        "6x",
        score=lambda of, ids: of(ids)[:, 0],
        methods=["frequency_tiers", "keep"],
    )
    assert [p.method for p in plan.tables] == ["frequency_tiers"]
    embedcomp.swap_(model, plan)
    off = (model[0].to_float() - before).square().mean(1)
    others = torch.ones(rows).bool()
    others[often] = False
    assert off[often].mean() < 0.2 * off[others].mean()
    ids = inputs()
    exported = torch.export.export(model, (ids,)).module()
    torch.testing.assert_close(exported(ids), model(ids))


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted", [{"*": "row_int8"}, {"[ms]*": {"method": "drop_rare", "share": 0.5}}]
)
def test_a_swapped_model_can_be_exported(wanted):
    torch.manual_seed(0)
    case = plain()
    case.model.eval()
    embedcomp.swap_(case.model, wanted)
    ids = case.inputs(0)
    exported = torch.export.export(case.model, (ids,))  # nn.EmbeddingBag fixes the batch as well
    other = case.inputs(1)
    torch.testing.assert_close(exported.module()(other), case.model(other))


def test_committing_lets_the_original_go():
    model = nn.Sequential(bags())
    embedcomp.swap_(model, {TABLES: "row_int8"})
    with pytest.raises(BadModel, match="restore_ or commit_"):
        embedcomp.swap_(model, {TABLES: "row_int8"})
    embedcomp.commit_(model)
    with pytest.raises(BadModel, match="no layers to restore"):
        embedcomp.restore_(model)
    reasons = {e.reason for e in embedcomp.explain(model) if "embedding_bags" in e.layer}
    assert reasons == {"is compressed already"}


def _quantized() -> nn.Module:
    return quantize_inference_model(nn.Sequential(bags()))


def _fused() -> nn.Module:
    return FusedEmbeddingBagCollection(
        [config("t", ["a"])], torch.optim.SGD, {"lr": 0.1}, location=EmbeddingLocation.HOST
    )


def _sharded() -> nn.Module:
    sharder = EmbeddingBagCollectionSharder()
    ways = {name: data_parallel() for name in ("t1", "t2", "t3")}
    plan = construct_module_sharding_plan(bags(), ways, sharder, 1, 1, "cpu")
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    return sharder.shard(bags(), plan, env, torch.device("cpu"))


@pytest.fixture
def process_group(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("make", "reason"),
    [(_quantized, "is quantized already"), (_fused, "fused form"), (_sharded, "is sharded")],
)
def test_other_forms_of_tables_are_refused_whole_and_by_name(make, reason, process_group):
    model = nn.ModuleDict({"tables": make()})
    with pytest.raises(BadSettings, match=reason):
        embedcomp.swap_(model, {"tables*": "row_int8"})
    explained = [e for e in embedcomp.explain(model) if e.layer.startswith("tables")]
    assert explained and not any(e.methods for e in explained)


def test_a_plan_that_folds_decoders_is_not_carried_out_in_place():
    model = nn.Sequential(bags())
    folding = replace(embedcomp.swap_(model, {TABLES: "row_int8"}), single_valued=("a",))
    embedcomp.restore_(model)
    with pytest.raises(BadModel, match="cannot be undone"):
        embedcomp.swap_(model, folding)


def test_a_written_plans_bytes_are_those_of_the_whole_model():
    model = Plain()
    plan = embedcomp.swap_(model, {"sum": "row_int8"})
    size = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert plan.bytes_after == size < plan.bytes_before


def test_weights_of_a_bag_of_means_are_refused_as_torch_does():
    model = nn.Sequential(nn.EmbeddingBag(ROWS, DIM, mode="mean", padding_idx=0))
    ids, weights = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3)
    with pytest.raises(NotImplementedError):
        model[0](ids, per_sample_weights=weights)
    embedcomp.swap_(model, {"0": "row_int8"})
    with pytest.raises(ValueError, match="takes no per_sample_weights"):
        model[0](ids, per_sample_weights=weights)


WRONG = [
    ({"nothing*": "row_int8"}, "no layer's name fits 'nothing\\*'"),
    ({TABLES: "row_int9"}, "there is no method 'row_int9'"),
    ({TABLES: {"method": "low_rank", "rank": DIM + 1}}, "has ranks from 0 to 8, so 9"),
    ({TABLES: {"method": "low_rank", "rank": 1, "storag": "half"}}, "has no setting 'storag'; it"),
    ({TABLES: {"method": "low_rank"}}, "low_rank for .*rank"),
    ({TABLES: {"rank": 3}}, "name no method"),
]


@pytest.mark.parametrize(("written", "message"), WRONG)
def test_a_wrong_plan_is_one_sentence_and_changes_nothing(written: Any, message: str):
    model = nn.Sequential(bags())
    modules = dict(model.named_modules())
    with pytest.raises(BadSettings, match=message):
        embedcomp.swap_(model, written)
    assert dict(model.named_modules()) == modules
    with pytest.raises(BadModel):
        embedcomp.restore_(model)


@pytest.mark.slow
def test_a_plan_of_another_model_is_refused():
    case = dlrm()
    plan = embedcomp.plan(case.model, batches(case), budget="50%", score=case.score)
    with pytest.raises(BadModel, match="cannot be swapped in this model"):
        embedcomp.swap_(nn.Sequential(bags()), plan)


def test_explain_names_every_layer_and_prints():
    model = Plain()
    model.norm = nn.LayerNorm(3)
    found = {e.layer: e for e in embedcomp.explain(model)}
    assert set(found) == {"sum", "mean", "sequence", "short", "out", "norm"}
    assert "row_int8" in found["sum"].methods
    assert found["norm"].methods == () and "LayerNorm" in found["norm"].reason
    assert "row_int8" in str(embedcomp.explain(model))


def test_parameters_that_no_layer_owns_are_named_with_their_bytes():
    model = Plain()
    model.cross = nn.ParameterList([torch.zeros(2, 3, 4), torch.zeros(5)])
    (found,) = [e for e in embedcomp.explain(model) if e.layer == "cross"]
    assert found.methods == () and found.bytes == 4 * (24 + 5)
    assert "ParameterList" in found.reason
    assert "2 of its parameters stay as they are, with 116 bytes" in found.reason
