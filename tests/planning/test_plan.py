from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from rich.console import Console
from torch import nn

from embedcomp import methods
from embedcomp.errors import BadSettings, BudgetTooSmall
from embedcomp.modules.embedded import readers
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.planning import aside, solvers
from embedcomp.planning import choices as module
from embedcomp.planning.aside import _sent, by_layer
from embedcomp.planning.choices import (
    Choice,
    candidates,
    choices,
    empty_bytes,
    every,
    total_bytes,
    total_loss,
)
from embedcomp.planning.goal import ByteBudget
from embedcomp.planning.plan import Plan, render
from embedcomp.planning.planner import by_name, plan
from embedcomp.planning.search import LeastBytes, LeastLoss, Search
from embedcomp.sensitivity.layer import LinearSpec, TableSpec
from embedcomp.sensitivity.layers import find
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.storage.kind import CannotStore
from embedcomp.support.progress import Counter, quiet
from embedcomp.swapping.swap import (
    apply,
    empty_like,
    freeze,
    on_meta,
    thaw,
)
from tests import small
from tests.planning.killed import killed_at

WHOLE = model_bytes(small.model())["total"]
SHARES = (0.5, 0.2, 0.08)
every_share = pytest.mark.parametrize(
    "share", [*SHARES, *(pytest.param(share, marks=pytest.mark.matrix) for share in (0.9, 0.04))]
)
# with these every byte lowers the loss; rows that are never looked up cost nothing to drop
SPENDING = ("half", "row_int8", "row_int4", "svd", "low_rank")
KNOWN = {}  # about the layers, whatever is planned


@cache
def planned(share, names=None):
    model, found, measured = small.measured()
    names = names or tuple(methods.every())
    return plan(model, found, measured, int(WHOLE * share), names, small.SINGLE, known=KNOWN)


def applied(share):
    model, found, measured = small.measured()
    return model, apply(model, planned(share), found, measured)


def scores(model):
    with torch.no_grad():
        return torch.cat([model(b.dense, b.sparse) for b in small.batches()])


def shapes(model):
    return {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5x", 200_000),
        ("20%", 200_000),
        ("0.5%", 5_000),
        ("4MiB", 4 * 2**20),
        ("300kB", 300_000),
        ("1.5 kib", 1536),
        ("123,456", 123_456),
        ("7b", 7),
    ],
)
def test_budgets_are_read(text, expected):
    assert ByteBudget.parse(text).of(1_000_000) == expected


@pytest.mark.parametrize("text", ["", "0", "0x", "-5x", "5 apples", "x5", "nan", "1e9"])
def test_what_is_not_a_budget_is_refused(text):
    with pytest.raises(BadSettings, match="is not a positive size; write 5x, 20%, 4MiB"):
        ByteBudget.parse(text).of(1_000_000)


def test_every_tensor_of_a_model_is_counted():
    sizes = model_bytes(small.model())
    tables = sum(small.ROWS.values()) * small.DIM * 4
    inputs = small.DIM * 3 + small.DENSE
    dense = 4 * (24 * inputs + 24 + 20 * 24 + 20 + 20 + 1 + inputs + 1)
    assert sizes == {"total": tables + dense, "tables": tables, "dense": dense}
    assert model_bytes(on_meta(small.model())) == sizes


@pytest.mark.slow
@every_share
def test_the_model_keeps_to_its_budget_and_to_what_the_plan_said(share):
    found = planned(share)
    _, compressed = applied(share)
    assert model_bytes(compressed)["total"] == found.bytes_after <= found.budget_bytes
    few = planned(share, SPENDING)
    assert few.bytes_after > 0.7 * few.budget_bytes


@pytest.mark.slow
def test_more_bytes_never_predict_more_loss():
    losses = [planned(share).loss for share in SHARES]
    assert losses == sorted(losses)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.08])
@pytest.mark.parametrize("name", ["low_rank", "svd"])
def test_a_mix_is_predicted_to_lose_no_more_than_a_method_alone(share, name):
    assert planned(share).loss <= planned(share, (name,)).loss


@pytest.mark.slow
def test_a_mix_goes_on_from_the_plan_of_a_method_alone():
    """Where no other start leads as far."""
    names = ("low_rank", "drop_rare", "half")
    assert planned(0.14, names).loss <= planned(0.14, ("low_rank",)).loss


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.08])
def test_a_plan_within_the_loss_of_another_is_about_as_small(share):
    model, found, measured = small.measured()
    names, most = tuple(methods.every()), planned(share).loss
    made = plan(model, found, measured, None, names, small.SINGLE, most_loss=most, known=KNOWN)
    assert made.loss <= most * (1 + 1e-8)
    assert made.bytes_after <= 1.02 * planned(share).bytes_after
    assert made.budget_bytes == made.bytes_after


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(["keep", "half", "row_int8", "row_int4", "svd"], id="few"),
        pytest.param(list(methods.every()), id="all", marks=pytest.mark.matrix),
    ],
)
def search(request):
    """A search whose choices are made once."""
    model, found, measured = small.measured()
    layers = measured.measured(found).layers
    rest = readers(model), small.SINGLE, solvers.get("exact")
    return Search(layers, request.param, *rest)


@pytest.mark.slow
@pytest.mark.parametrize("solver", solvers.names())
def test_every_solver_plans_within_bytes_and_within_a_loss(search, solver):
    search.solver = solvers.get("exact")
    best = search.best(LeastLoss(WHOLE // 5))
    search.solver = solvers.get(solver)
    found = search.best(LeastLoss(WHOLE // 5))
    assert total_bytes(found) <= WHOLE // 5
    assert total_loss(found) >= total_loss(best) * (1 - 1e-6)
    dual = search.best(LeastBytes(total_loss(found)))
    assert total_loss(dual) <= total_loss(found) * (1 + 1e-8)
    assert total_bytes(dual) <= 1.2 * total_bytes(found)


@pytest.mark.parametrize("solver", solvers.names())
def test_the_smallest_plan_of_a_solver_is_within_its_own_bytes(search, solver):
    search.solver = solvers.get(solver)
    smallest = total_bytes(search.smallest())
    assert total_bytes(search.best(LeastLoss(smallest))) <= smallest
    assert search.best(LeastLoss(smallest // 2)) is None


@pytest.mark.slow
def test_a_plan_says_which_solver_chose_it():
    model, found, measured = small.measured()
    given = {"solver": "welore", "known": KNOWN}
    made = plan(model, found, measured, WHOLE // 3, ["svd"], small.SINGLE, **given)
    assert made.solver == "welore" and made.bytes_after <= WHOLE // 3
    assert {p.method for p in made.layers} == {"keep", "svd"}
    storages = {p.settings["storage"] for p in made.layers if p.method == "svd"}
    assert len(storages) <= 2  # one for the tables, one for what reads them


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.08])
def test_the_predicted_loss_is_about_the_real_one(share):
    model, compressed = applied(share)
    z, off = scores(model).double(), (scores(compressed) - scores(model)).double()
    p = torch.sigmoid(z)
    real = float((0.5 * p * (1 - p) * off**2).mean())
    assert 0.4 < planned(share).loss / real < 2.5


@pytest.mark.slow
@every_share
def test_an_empty_model_takes_the_tensors_of_the_compressed_one(share):
    model, compressed = applied(share)
    stored = Plan.from_dict(json.loads(json.dumps(planned(share).to_dict())))
    assert stored == planned(share)
    empty = empty_like(on_meta(model), stored)
    assert shapes(empty) == shapes(compressed)
    empty.load_state_dict(compressed.state_dict(), assign=True)
    assert torch.equal(scores(empty.eval()), scores(compressed))


def test_decoders_are_folded_where_that_is_exact():
    _, compressed = applied(0.08)
    widths = [bag.stored.width for bag in compressed.embeddings.embedding_bags.values()]
    folded = [bag.folded for bag in compressed.embeddings.embedding_bags.values()]
    assert compressed.first.folded and any(folded)
    assert not folded[2]  # bags of c may be empty
    kept = [w if f else small.DIM for w, f in zip(widths, folded, strict=True)]
    layer = compressed.first.linear
    inputs = layer.stored.width if hasattr(layer, "stored") else layer.first.rows
    assert inputs == sum(kept) + small.DENSE


def test_the_original_is_left_alone():
    model, found, measured = small.measured()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    compressed = apply(model, planned(0.2), found, measured)
    thaw(compressed)
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.add_(1)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert type(model.wide) is nn.Linear


def test_a_generous_budget_keeps_everything_as_it_is():
    model, compressed = applied(1.0)
    assert planned(1.0).loss == 0
    assert torch.allclose(scores(compressed), scores(model), atol=1e-6)


def test_tuned_weights_are_served_bit_for_bit():
    _, compressed = applied(0.08)
    thaw(compressed)
    optimizer = torch.optim.SGD(compressed.parameters(), lr=0.05)
    b = small.batches()[0]
    loss = nn.functional.binary_cross_entropy_with_logits(compressed(b.dense, b.sparse), b.labels)
    loss.backward()
    optimizer.step()
    trained = scores(compressed)
    freeze(compressed)
    assert torch.equal(scores(compressed), trained)
    assert model_bytes(compressed)["total"] == planned(0.08).bytes_after


def test_a_budget_that_nothing_fits_names_the_smallest():
    model, found, measured = small.measured()
    given = ["row_int8", "low_rank"], small.SINGLE
    with pytest.raises(BudgetTooSmall) as error:
        plan(model, found, measured, 100, *given, known=KNOWN)
    smallest = error.value.smallest
    fits = plan(model, found, measured, smallest, *given, known=KNOWN)
    assert fits.bytes_after <= smallest
    most = max(fits.layers, key=lambda planned: planned.bytes_after)
    assert f"of which {most.layer} takes {most.bytes_after:,}, more than" in str(error.value)
    fixed = fits.bytes_after - sum(planned.bytes_after for planned in fits.layers)
    assert f"and {fixed:,} are not compressed; raise" in str(error.value)


@pytest.mark.parametrize("name", methods.every())
def test_a_plan_uses_only_the_methods_it_may(name):
    for share in (0.6, 0.85, 1.0):  # from what most reach to what a method of few layers does
        try:
            made = planned(share, (name,))
        except BudgetTooSmall:
            continue
        assert {p.method for p in made.layers} <= {"keep", name}
        assert share == 1.0 or name in {p.method for p in made.layers}
        return
    pytest.fail("not even the whole model fits")


@pytest.mark.slow
def test_layers_that_no_method_takes_are_left_to_the_rest():
    model, found, measured = small.measured()
    names, given = ("drop_rare",), {"rest": ("low_rank",), "known": KNOWN}
    made = plan(model, found, measured, WHOLE // 5, names, small.SINGLE, **given)
    used = {kind: {p.method for p in made.layers if p.kind == kind} for kind in ("table", "linear")}
    assert "drop_rare" in used["table"] <= {"drop_rare", "keep"}
    assert "low_rank" in used["linear"] <= {"low_rank", "keep"}
    with pytest.raises(BudgetTooSmall):
        plan(model, found, measured, WHOLE // 5, names, small.SINGLE, known=KNOWN)
    both = plan(model, found, measured, WHOLE // 5, ("drop_rare", "svd"), small.SINGLE, **given)
    assert {p.method for p in both.layers} <= {"drop_rare", "svd", "keep"}  # svd takes them all


@pytest.mark.parametrize("given", [{"names": ("svdd",)}, {"names": ("svd",), "rest": ("svdd",)}])
def test_a_method_that_is_none_is_refused_before_anything_is_planned(given):
    model, found, measured = small.measured()
    with pytest.raises(BadSettings, match="no method 'svdd'"):
        plan(model, found, measured, WHOLE, single_valued=small.SINGLE, **given)


def test_what_is_not_compressed_is_listed_with_its_reason():
    model, found, measured = small.measured()
    found.refused["norm"] = "is a LayerNorm"
    made = plan(model, found, measured, WHOLE, ["keep"])
    out = io.StringIO()
    Console(file=out, width=200).print(render(made))
    assert "is a LayerNorm" in out.getvalue() and "embeddings.embedding_bags.t_a" in out.getvalue()


def test_values_that_a_storage_cannot_hold_are_left_out_of_the_choices(caplog):
    model = nn.ModuleDict({"l": nn.Linear(4, 4)})
    model["l"].weight.data *= 1e7
    layer = find(model, {}).layers["l"]
    assert [c.method for c in choices(layer, ["row_int8"])] == []
    assert "l: " in caplog.text and "do not fit row_int8" in caplog.text


def test_large_tables_are_judged_on_a_sample(monkeypatch):
    _, found, _ = small.measured()
    layer = found.layers["embeddings.embedding_bags.t_a"]
    whole = choices(layer, ["row_int4", "low_rank"])
    monkeypatch.setattr(module, "SAMPLED_ROWS", 100)
    sampled = {c.settings: c for c in choices(layer, ["row_int4", "low_rank"])}
    common = [c for c in whole if c.settings in sampled]
    assert len(common) > 5
    for choice in common:
        assert choice.bytes == sampled[choice.settings].bytes
        assert sampled[choice.settings].loss == pytest.approx(choice.loss, rel=0.5)
    assert module_bytes(nn.Linear(2, 3)) == 36


def test_of_forms_whose_ids_meet_a_larger_one_is_expected_to_learn_more():
    _, found, _ = small.measured()
    layer = found.layers["embeddings.embedding_bags.t_a"]
    rows, dim = layer.weight.shape
    for name, power in (("hashed", 0.2), ("low_rank", 0.0)):
        for choice in choices(layer, [name])[::5]:
            begun = predicted_loss(layer, methods.get(name).compress(layer, choice.settings))
            left = (rows * dim / choice.bytes) ** power
            assert choice.loss == pytest.approx(begun * left, rel=1e-6)


@pytest.mark.slow
def test_what_is_known_about_the_layers_serves_further_plans(monkeypatch):
    from embedcomp.planning import search as module

    asked = []

    def counted(layers, *told):
        asked.extend((layer.spec.name, name) for layer, names in layers for name in names)
        return by_layer(layers, *told)

    monkeypatch.setattr(module, "by_layer", counted)
    model, found, measured = small.measured()
    names, known = ("row_int8", "svd"), {}
    alone = plan(model, found, measured, WHOLE // 5, names, small.SINGLE)
    asked.clear()
    plan(model, found, measured, WHOLE // 5, ["svd"], small.SINGLE, known=known)
    plan(model, found, measured, WHOLE // 5, names, small.SINGLE, known=known)
    assert {name for *_, name in asked} == {"keep", "svd", "row_int8"}
    asked.clear()
    again = plan(model, found, measured, WHOLE // 5, names, small.SINGLE, known=known)
    assert again == alone and not asked


@pytest.mark.slow
@pytest.mark.parametrize("stored", [True, False])
def test_the_smallest_plan_is_that_of_all_candidates(stored, monkeypatch):
    """Narrowed readers have a method's smallest candidates, and all if those cannot be stored."""
    model, found, measured = small.measured()
    layers, svd = measured.measured(found).layers, methods.get("svd")
    compress = svd.compress

    def without_rank_1(layer, settings):
        if isinstance(layer.spec, LinearSpec) and settings.rank == 1:
            raise CannotStore(0.0, settings.storage)
        return compress(layer, settings)

    if not stored:
        monkeypatch.setattr(svd, "compress", without_rank_1)

    def smallest():
        names = ["keep", "half", "row_int8", "svd"]
        rest = readers(model), small.SINGLE, solvers.get("exact")
        return Search(layers, names, *rest).smallest()

    chosen = smallest()
    monkeypatch.setattr(Search, "_smallest_of_readers", lambda *_: None)
    assert chosen == smallest()
    assert chosen["first.linear"].method == "svd", "what a wrong search would miss"


@pytest.mark.slow
def test_a_plan_ends_among_all_candidates_whatever_was_likely(monkeypatch):
    """What is tried of narrowed readers in between may miss the best of them."""
    model, found, measured = small.measured()
    layers, goal = measured.measured(found).layers, LeastBytes(1e-3)
    monkeypatch.setattr(
        Search, "_likely", lambda *of: dict.fromkeys(of[-1], ()) | every(of[-2], ["keep"])
    )
    rest = readers(model), small.SINGLE, solvers.get("exact")
    search = Search(layers, ["keep", "half", "svd"], *rest)
    chosen = search.best(goal)
    narrowed = search._of_readers(chosen, thoroughly=True)
    again = search._solved(goal, {**search._fixed(chosen), **narrowed}, chosen)
    assert goal.objective(chosen) == goal.objective(again)
    assert any(chosen[name].method != "keep" for name in narrowed)


@pytest.mark.slow
def test_choices_of_narrowed_readers_do_not_depend_on_earlier_searches():
    """What is unbeaten among a few methods is not what is among more."""
    model, found, measured = small.measured()
    layers = measured.measured(found).layers

    def search(names, known):
        rest = readers(model), set(small.SINGLE), solvers.get("exact"), ()
        return Search(layers, names, *rest, known)

    few, more = ("svd",), ("svd", "row_int4", "column_quantized", "weight_clustering")
    tables = {  # of all but a column, so that readers keep more than half of their inputs
        name: next(
            choice
            for choice in search(few, {}).menu(name)
            if getattr(choice.settings, "rank", 0) == layer.spec.dim - 1
        )
        for name, layer in layers.items()
        if isinstance(layer.spec, TableSpec)
    }
    for names, before in ((more, few), (few, more)):
        known = {}
        search(before, known)._of_readers(tables)
        menus = search(names, known)._of_readers(tables)
        alone = search(names, {})._of_readers(tables)
        assert {n: [*menu] for n, menu in menus.items()} == {n: [*m] for n, m in alone.items()}


@pytest.mark.parametrize("name", methods.every())
@pytest.mark.parametrize("by_count", [True, False])
def test_a_table_is_as_large_without_the_counts_that_it_was_planned_with(by_count, name):
    """What a method reads off the counts must be in its settings: an artifact has no counts."""
    model = small.model()
    for layer in find(model, {}).layers.values():
        spec = layer.spec
        if isinstance(spec, TableSpec):
            spec = replace(spec, counted=True, by_count=by_count)
        for settings in methods.get(name).candidates(spec):
            planned, loaded = (empty_bytes(name, s, settings) for s in (spec, layer.spec))
            assert planned == loaded, settings


def test_a_method_that_cannot_take_a_layer_is_refused_by_name():
    model = small.model()
    with pytest.raises(BadSettings, match="drop_rare cannot take wide; "):
        by_name(model, find(model, {}), {"wide": "drop_rare"})


@pytest.mark.slow
def test_what_only_pays_when_tuned_is_offered_where_tuning_follows():
    model, found, measured = small.measured()
    known = {False: {}, True: {}}
    for tuned, menus in known.items():
        budget = int(WHOLE * 0.3)
        plan(model, found, measured, budget, ["low_rank"], known=menus, tuned=tuned)
        offered = [c for menu in menus.values() for c in menu if c.method == "low_rank"]
        assert tuned == any(c.settings.activation for c in offered)


@pytest.mark.slow
def test_processes_find_what_this_one_finds(monkeypatch):
    """With two cores' threads, and from the third layer on, as if the second had taken long."""
    _, found, measured = small.measured()
    layers = [
        (layer, every(layer.spec, ["keep", "half"]))
        for layer in measured.measured(found).layers.values()
    ]
    here = list(by_layer(layers))
    monkeypatch.setattr(aside, "WORTH_STARTING", 0.0)
    monkeypatch.setattr(aside, "WORTH_SENDING", 0.0)
    monkeypatch.setattr(aside, "cores", lambda: 2)
    sent = []

    def watched(asked, *counted, sparing):
        sent.append(len(asked))
        return _sent(asked, *counted, sparing=sparing)

    monkeypatch.setattr(aside, "_sent", watched)
    assert list(by_layer(layers)) == here and sent == [len(layers) - 2]


@pytest.mark.slow
@pytest.mark.parametrize("sparing", [False, True])
def test_a_layer_alone_is_found_in_parts_by_processes_that_run(sparing, monkeypatch):
    _, found, measured = small.measured()
    layer = measured.measured(found).layers["first.linear"]
    asked = [(layer, every(layer.spec, ["keep", "svd", "low_rank"]))]
    monkeypatch.setattr(aside, "cores", lambda: 1)
    here = list(by_layer(asked, sparing=sparing))
    monkeypatch.setattr(aside, "cores", lambda: 2)
    aside._executor()
    sent = []

    def watched(asked, *counted, sparing):
        sent.extend(sum(map(len, wanted.values())) for _, wanted in asked)
        return _sent(asked, *counted, sparing=sparing)

    monkeypatch.setattr(aside, "_sent", watched)
    assert list(by_layer(asked, sparing=sparing)) == here
    assert len(sent) == 2 and sum(sent) == sum(map(len, asked[0][1].values()))
    assert abs(sent[0] - sent[1]) <= aside.TOGETHER * len(here[0])


def tried(losses, sizes=None):
    """Settings that `spared` makes of row_int8's, whose bytes and losses are these."""
    sizes = sizes or range(1, len(losses) + 1)
    spec = TableSpec(name="t", rows=8, dim=4, pooling="sum")
    made = []

    def make(settings):
        made.append(settings)
        return Choice("stub", settings, sizes[settings], losses[settings])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "empty_bytes", lambda method, spec, settings: sizes[settings])
        found = module.spared("stub", range(len(losses)), spec, make)
    assert [choice.settings for choice in found] == made
    return sorted(made)


def test_neighbours_of_what_is_on_the_front_are_made_and_no_others():
    assert tried([9, 8, 7, 6, 5, 4, 3, 2, 1]) == list(range(9))
    assert tried([9, 8, 7, 6, 8.5, 4, 3, 2, 1]) == [0, 1, 2, 4, 6, 7, 8]
    assert tried([9, 9, 9, 9, 9, 9, 9, 9, 9]) == [0, 1, 2, 4, 7], "the smallest is on the front"


def test_the_smallest_candidate_is_always_made():
    """Even beside one that is far from the front."""
    assert tried([1] * 9, [10, 2, 11, 12, 13, 14, 1, 20, 21]) == [1, 4, 6, 7, 8]


def test_nothing_larger_is_made_than_what_loses_next_to_nothing():
    least = module.NEGLIGIBLE
    assert tried([5, 4, 3, least, least, 1e-12, 0, 0, 0]) == [0, 1, 2, 3, 4]
    assert tried([5, 4, 3, 2, 2 * least, 1e-12, 0, 0, 0]) == [0, 1, 2, 3, 4, 5, 7]
    assert tried([5, 0, 0, 0]) == [0, 1], "a few are all made, and no larger ones either"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "known", "sparing"),
    [
        ("exact", True, True),
        ("highs", True, True),
        ("welore", True, False),
        ("exact", False, False),
    ],
)
def test_candidates_are_spared_where_their_losses_say_enough(solver, known, sparing):
    """Not for a solver of whole families, nor where no gradients say what is negligible."""
    model, found, measured = small.measured()
    made = {}
    told = measured if known else Statistics()
    plan(model, found, told, WHOLE // 3, ["low_rank"], small.SINGLE, solver=solver, known=made)
    menus = {name: menu for (layer, name, _), menu in made.items() if layer == "first.linear"}
    tried = {choice.settings for choice in menus["low_rank"]}
    every_one = set(candidates("low_rank", found.layers["first.linear"].spec))
    assert (tried < every_one) if sparing else (tried == every_one)


@pytest.mark.slow
@every_share
def test_sparing_candidates_costs_a_plan_little(share):
    """Beside the plan of all candidates, which a search in time needs."""
    model, found, measured = small.measured()
    asked = model, found, measured, int(WHOLE * share), methods.names(), small.SINGLE
    least = [plan(*asked, known=KNOWN).loss]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "_sparing", False)
        least.append(plan(*asked, known=KNOWN).loss)
    assert least[0] <= 1.15 * least[1] + 1e-8


@pytest.mark.slow
def test_what_a_killed_process_had_not_found_is_found_here(monkeypatch, caplog):
    _, found, measured = small.measured()
    layers = [
        (layer, every(layer.spec, ["keep", "half"]))
        for layer in measured.measured(found).layers.values()
    ]
    here = list(by_layer(layers))
    second = layers[1][0].spec.name
    monkeypatch.setattr(aside, "cores", lambda: 1)  # a process takes seconds to start
    aside._executor.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(aside, "found_by_method", partial(killed_at, os.getpid(), second))
        assert list(aside._sent(layers, _counter(layers))) == here
    assert "a planning process was killed" in caplog.text
    assert list(aside._sent(layers, _counter(layers))) == here, "processes are started again"
    aside._executor.cache_clear()


def _counter(layers):
    return Counter(quiet, "planning", sum(map(len, layers)), "candidates")
