"""Ranks in order of worth: their training, and one artifact that is served at many budgets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from typer.testing import CliRunner

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.cli.main import app
from embedcomp.errors import BadSettings
from embedcomp.graph.graph import Graph, Node
from embedcomp.log.batches import Shuffled, in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.methods.trained import ordered_rank
from embedcomp.modules.embedded import Block, can_fold
from embedcomp.modules.layout import cut, layouts
from embedcomp.modules.ordered import Ordered, OrderedBag, OrderedLinear
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.modules.table import CompressedBag
from embedcomp.planning.planner import by_name
from embedcomp.recipes.settings import CompressSettings
from embedcomp.scorer.portable import Portable
from embedcomp.scorer.scorer import Scorer
from embedcomp.scorer.stand_alone import stand_alone_from_log
from embedcomp.sensitivity.layer import LinearSpec, TableSpec
from embedcomp.sensitivity.layers import as_drawn, find
from embedcomp.storage.decode import Affine
from embedcomp.storage.prefixes import Cut, ranks_within
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.training import Progress
from embedcomp.support.mapped import mapped
from embedcomp.swapping.cutting import Form, cheapest_first, drop_dead_
from embedcomp.swapping.swap import freeze, thaw
from embedcomp.train import fit as fitting
from embedcomp.train.fit import Data, fit
from embedcomp.train.optim import optimizers
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from tests.train.killed import Killed
from tests.train.test_train import small_model

STEPS, RATE = 1500, 0.05


def at(step: int) -> Progress:
    return Progress("final", step, STEPS, STEPS, 0)


def bag(rows: int, dim: int, rank: int, storage: str = "float32") -> OrderedBag:
    decode = Affine(rank, dim, "float32", True)
    table = OrderedBag(rows, dim, "sum", StoredRows(rows, rank, storage), decode=decode)
    table.fill(torch.randn(rows, rank))
    decode.fill(torch.randn(rank, dim), torch.zeros(dim))
    return table


def linear(inputs: int, outputs: int, rank: int) -> OrderedLinear:
    layer = OrderedLinear(inputs, outputs, rank, bias=None, storage="float32")
    layer.first.fill(torch.randn(inputs, rank))
    layer.second.fill(torch.randn(outputs, rank))
    return layer


def of_singular_values(rows: int, columns: int) -> Tensor:
    """A matrix of rank 4 with singular values 4, 2, 1 and 1/2."""
    left, _ = torch.linalg.qr(torch.randn(rows, 4))
    right, _ = torch.linalg.qr(torch.randn(columns, 4))
    return left @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5])) @ right.T


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "linear"])
def test_what_is_trained_on_least_squares_is_the_singular_value_decomposition(kind: str) -> None:
    torch.manual_seed(0)
    rows, columns, rank = 9, 7, 3
    wanted = of_singular_values(rows, columns)
    layer: Ordered = bag(rows, columns, rank) if kind == "table" else linear(columns, rows, rank)
    every = torch.arange(rows)[:, None] if kind == "table" else torch.eye(columns)
    thaw(layer)
    optimizer = torch.optim.Adam(
        [p for p in layer.parameters() if p.shape != (1, columns)], lr=RATE
    )

    def matrix() -> Tensor:
        found: Tensor = layer(every)
        return found if kind == "table" else found.T

    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, 3 * (1 - step / STEPS)) ** 2
        optimizer.zero_grad()
        full = matrix()
        loss = (full - wanted).square().sum()
        with layer.narrowed(at(step)):
            loss = loss + (matrix() - full.detach()).square().sum()
        loss.backward()
        for parameter in layer.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to_dense()
        optimizer.step()
    freeze(layer)
    left, values, right = torch.linalg.svd(wanted)
    for r in range(1, rank + 1):
        best = left[:, :r] @ torch.diag(values[:r]) @ right[:r]
        smaller = cut(layer, r) if r < rank else layer
        found = smaller(every) if kind == "table" else smaller(every).T
        assert torch.allclose(found, best, atol=1e-3), (r, (found - best).abs().max())


def test_the_lasso_is_the_sum_of_the_norms_of_all_tails() -> None:
    """Codes of root mean squares 1 and 2, decoder rows of norms 5 and 1: worths 5 and 2."""
    table = bag(2, 2, 2)
    table.fill(torch.tensor([[1.0, 2.0], [-1.0, 2.0]]))
    assert isinstance(table.decode, Affine)
    table.decode.fill(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2))
    assert table.penalty() is None
    table.lasso = 0.1
    thaw(table)
    penalty = table.penalty()
    assert penalty is not None
    penalty.backward()
    assert penalty.item() == pytest.approx(0.1 * (29**0.5 + 2))
    assert table.stored.master is not None and table.stored.master.grad is None
    decoder = table.decode.stored.master
    assert decoder is not None and decoder.grad is not None
    # d/dv of sqrt(|u_0|^2 |v_0|^2 + |u_1|^2 |v_1|^2) + |u_1| |v_1|
    wanted = torch.tensor([[3.0, 4.0], [0.0, 4.0]]) / 29**0.5 + torch.tensor([[0, 0], [0, 2.0]])
    assert torch.allclose(decoder.grad, 0.1 * wanted)


def test_a_tail_of_nothing_has_a_finite_gradient() -> None:
    table = bag(3, 4, 2)
    table.fill(torch.tensor([[1.0, 0.0]]).expand(3, 2))
    table.lasso = 1.0
    thaw(table)
    penalty = table.penalty()
    assert penalty is not None
    penalty.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in table.parameters())


@pytest.mark.parametrize("layer", [bag(8, 6, 4), linear(8, 6, 4)], ids=["table", "linear"])
def test_narrowed_it_is_its_first_ranks(layer: Ordered) -> None:
    x = torch.arange(8).view(4, 2) if isinstance(layer, OrderedBag) else torch.randn(3, 8)
    seen = set()
    for step in range(40):
        with layer.narrowed(at(step)):
            rank = layer.prefix
            found = layer(x)
        assert rank is not None and torch.allclose(found, cut(layer, rank)(x), atol=1e-6)
        seen.add(rank)
    assert seen == {1, 2, 3} and layer.prefix is None


@pytest.mark.parametrize("storage", ["float32", "float16", "column_int8", "column_int4"])
def test_a_lower_rank_is_the_same_bytes(storage: str) -> None:
    whole = bag(11, 8, 6, storage)
    for rank in range(1, 6):
        smaller = cut(whole, rank)
        assert isinstance(smaller, OrderedBag)
        stored, full = smaller.stored.stored, whole.stored.stored
        assert stored is not None and full is not None
        assert torch.equal(stored, full[:, : stored.shape[1]])
        assert torch.equal(smaller.stored.to_float(), whole.stored.to_float()[:, :rank])
        assert module_bytes(smaller) < module_bytes(whole)
        assert stored.untyped_storage().nbytes() == stored.nbytes
        assert layouts(nn.ModuleDict({"t": smaller}))["t"]["width"] == rank


def test_last_ranks_that_are_worth_nothing_are_dropped() -> None:
    table = bag(5, 4, 3)
    codes = torch.ones(5, 3)
    table.fill(codes * torch.tensor([1e-7, 1.0, 0.9e-5]))
    assert isinstance(table.decode, Affine)
    table.decode.fill(torch.eye(3, 4), torch.zeros(4))
    assert table.alive() == 2  # the first one is nothing either, but it is not last
    table.fill(codes * torch.tensor([1e-7, 1.0, 1.1e-5]))
    assert table.alive() == 3
    table.fill(codes * 0)
    assert table.alive() == 1


def test_factors_as_large_as_the_layer_are_refused() -> None:
    table = TableSpec(name="t", rows=6, dim=3, pooling="sum")  # 18 numbers, 9 a rank
    message = "t of 18 numbers saves none at rank 2, whose factors have 18; give a rank below 2"
    with pytest.raises(BadSettings, match=re.escape(message)):
        ordered_rank.empty(table, ordered_rank.Settings(rank=2))
    assert not ordered_rank.candidates(table)
    ranks = {
        c.rank
        for c in ordered_rank.candidates(LinearSpec(name="l", inputs=12, outputs=4, bias=False))
    }
    assert ranks == {2}  # 48 numbers, 16 a rank


@pytest.mark.parametrize("rank", [2, 5])
def test_from_the_log_products_are_as_large_as_what_was_drawn(rank: int) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"l": nn.Linear(40, 30), "t": nn.EmbeddingBag(500, 16, mode="sum")})
    for name, layer in as_drawn(find(model, {})).layers.items():
        served = ordered_rank.compress(layer, ordered_rank.Settings(rank=rank, storage="float32"))
        found = served.to_float()
        product = found if name == "t" else found[0]
        assert float(product.std() / layer.weight.std()) == pytest.approx(1, abs=0.05)


def test_the_largest_form_within_a_budget_is_taken() -> None:
    cuts = [
        Cut(layer=layer, rank=rank, bytes=size, loss=0.0)
        for layer, rank, size in [("a", 3, 90), ("b", 1, 70), ("a", 1, 50)]
    ]
    assert ranks_within(cuts, 95) == {"a": 3} == ranks_within(cuts, 90)
    assert ranks_within(cuts, 89) == {"a": 3, "b": 1}
    assert ranks_within(cuts, 50) == {"a": 1, "b": 1}
    assert ranks_within(cuts, 49) is None


def test_each_step_to_a_smaller_form_costs_least_a_byte() -> None:
    """b's rank 2 costs more a byte than its rank 1, so it is passed over."""
    forms = {
        "a": [Form(3, 90, 0.0), Form(2, 60, 3.0), Form(1, 30, 9.0)],  # 0.1 and 0.2 a byte
        "b": [Form(3, 300, 0.0), Form(2, 200, 30.0), Form(1, 100, 30.0)],  # 0.3, but 0.15 for both
    }
    assert cheapest_first(forms, 1000) == [
        Cut(layer="a", rank=2, bytes=970, loss=3.0),
        Cut(layer="b", rank=1, bytes=770, loss=33.0),
        Cut(layer="a", rank=1, bytes=740, loss=39.0),
    ]


def test_a_graph_of_lower_rank_reads_the_first_numbers_of_each_vector() -> None:
    """Two vectors of 3 numbers to 4 codes each, in columns 10 to 17; 2 codes are left of each."""
    first = Node(
        op="linear", at=10, width=8, x=((0, 6),), name="l.first", times=2, inputs=3, outputs=4
    )
    second = Node(
        op="linear", at=18, width=10, x=((10, 8),), name="l.second", times=2, inputs=4, outputs=5
    )
    last = Node(
        op="linear", at=28, width=1, x=((8, 1), (14, 4)), name="m.second", inputs=5, outputs=1
    )
    graph = Graph(features=(), nodes=(first, second, last), out=28)
    found = graph.with_ranks({"l": 2}).nodes
    assert found[0] == replace(first, outputs=2, width=4)
    assert found[1] == replace(second, x=((10, 4),), inputs=2)
    assert found[2] == replace(last, x=((8, 1), (12, 2)))
    assert graph.with_ranks({}) == graph


SOURCE = ModelSource(model="dcnv2", settings={"width": 8, "hidden": [32, 16]}).complete()


@pytest.fixture(scope="module")
def made(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """Tables and linear layers by this method, where they can be."""
    folder, train = tmp_path_factory.mktemp("ordered"), TrainSettings(epochs=1, batch_rows=512)
    original = recipes.train(synth_log, synth_features, SOURCE, train, folder / "model")
    settings = CompressSettings(budget="90%", train=train, measure_rows=4096)
    measured, model = recipes.measure(original, synth_log, settings), original.model()
    found = recipes.layers_of(original, model)
    offered = {n: ordered_rank.candidates(layer.spec) for n, layer in found.layers.items()}
    wanted = {
        name: some[-1 - place % 3] for place, (name, some) in enumerate(offered.items()) if some
    }
    plan = by_name(model, found, wanted)
    assert {p.kind for p in plan.layers} == {"table", "linear"} and len(plan.layers) > 6
    assert {p.settings["storage"] for p in plan.layers} == {*ordered_rank.STORAGES}
    return recipes.compress(original, synth_log, measured, plan, settings, folder / "small")


def budgets(made: Artifact) -> list[int]:
    """Four, from the model in full to the smallest form."""
    cuts, full = made.origin.cuts, made.manifest.bytes["total"]
    return [full, *(cuts[(len(cuts) - 1) * i // 3].bytes for i in (1, 2, 3))]


@pytest.mark.slow
def test_forms_are_nested_and_their_sizes_are_true(made: Artifact) -> None:
    cuts = made.origin.cuts
    sizes = [made.manifest.bytes["total"], *(step.bytes for step in cuts)]
    assert sizes == sorted(sizes, reverse=True) and len(cuts) > 10
    assert [step.loss for step in cuts] == sorted(step.loss for step in cuts)
    ranks: dict[str, int] = {}
    for step in cuts:
        assert step.rank < ranks.get(step.layer, 100)
        ranks[step.layer] = step.rank
    assert {*ranks.values()} == {1}
    for size in budgets(made):
        assert model_bytes(made.within(str(size)).model())["total"] == size
        assert made.within(str(size + 1)).ranks == made.within(str(size)).ranks


@pytest.mark.slow
def test_codes_of_a_smaller_form_are_the_same_bytes_of_the_file(made: Artifact) -> None:
    whole = mapped(made.tensors_file)
    read = []
    for size in budgets(made):
        within = made.within(str(size))
        arrays = within.arrays()
        for name, rank in within.ranks.items():
            layer = "stored" if f"{name}.stored.stored" in arrays else "first"
            codes = arrays[f"{name}.{layer}.stored"]
            assert codes.flags.c_contiguous and codes.base is None
            assert codes.tobytes() == whole[f"{name}.{layer}.stored"][:, : codes.shape[1]].tobytes()
            assert codes.shape[1] >= rank / 2
        read.append(sum(Scorer(within).resident.values()))
    assert read == sorted(read, reverse=True) and read[-1] < 0.9 * read[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_each_form_scores_as_the_cut_model(
    made: Artifact, synth_log: ClickLog, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "torch":
        monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    piece, every = synth_log.pieces("test")[0], []
    rows = next(synth_log.read(piece)).slice(0, 64)
    batch = next(iter(in_order(synth_log, made.features, [piece], 64)))
    for size in budgets(made):
        scorer = Scorer.open(made.folder, budget=str(size))
        assert scorer.engine.startswith(engine)
        with torch.no_grad():
            wanted = made.within(str(size)).model()(batch.dense, batch.sparse).sigmoid().numpy()
        np.testing.assert_allclose(scorer.score(rows), wanted, rtol=0, atol=1e-6)
        every.append(wanted)
    assert len({scores.tobytes() for scores in every}) == 4


@pytest.mark.slow
def test_an_exported_program_takes_the_weights_of_a_smaller_form(
    made: Artifact, synth_log: ClickLog
) -> None:
    whole = stand_alone_from_log(made.model(), made.features)
    batch = next(iter(in_order(synth_log, made.features, synth_log.pieces("test"), 64)))
    for size in budgets(made)[1:]:
        within = made.within(str(size))
        alone, held = whole.standalone, dict(whole.held)
        program = Portable(
            alone.cut(within.ranks), whole.program, alone.cut_held(held, within.ranks)
        )
        with torch.no_grad():
            wanted = within.model()(batch.dense, batch.sparse).view(-1)
        assert torch.allclose(program.logits((batch.dense, batch.sparse)), wanted, atol=1e-5)


@pytest.mark.slow
def test_a_budget_below_the_smallest_form_is_refused_with_what_sets_it(made: Artifact) -> None:
    least = made.origin.cuts[-1].bytes
    with pytest.raises(BadSettings) as refused:
        made.within(str(least - 1))
    sizes = {n: module_bytes(m) for n, m in made.within(str(least)).model().named_modules()}
    found = re.search(r"(\S+) alone is ([\d,]+); give", str(refused.value))
    assert found and f"served in {least:,} at least" in str(refused.value)
    assert sizes[found[1]] == int(found[2].replace(",", ""))
    assert sizes[found[1]] == max(sizes[planned.layer] for planned in made.plan.layers)


@pytest.mark.slow
def test_what_has_no_ordered_ranks_cannot_be_cut(made: Artifact) -> None:
    original = Artifact.open(made.folder.parent.parent / "model")
    assert original.within("1x").ranks == {}
    with pytest.raises(BadSettings, match="has no layers of ordered ranks that could be cut"):
        original.within("2x")


@pytest.mark.slow
def test_commands_take_a_budget_and_list_the_sizes(made: Artifact, synth_log: ClickLog) -> None:
    cuts, runner = made.origin.cuts, CliRunner()
    told = runner.invoke(app, ["inspect", str(made.folder)])
    assert f"{len(cuts):,} smaller sizes, {cuts[-1].bytes:,} bytes at least" in told.output
    assert f"{cuts[0].bytes:,}" in told.output
    command = ["evaluate", str(made.folder), "--log", synth_log.path, "--json", "-"]
    told = runner.invoke(app, [*command, "--budget", str(cuts[5].bytes)])
    found = json.loads(told.stdout)
    assert found["bytes"]["total"] == cuts[5].bytes
    assert found["auc"] == pytest.approx(
        quality(
            made.within(str(cuts[5].bytes)).model(),
            synth_log,
            made.features,
            synth_log.pieces("test"),
        ).auc
    )


def test_its_decoder_is_not_folded_into_its_reader() -> None:
    block, table = Block("t", ("f",), 8), bag(50, 8, 3)
    plain = CompressedBag(50, 8, "sum", table.stored, decode=table.decode)
    assert can_fold(block, plain, {"f"}) and not can_fold(block, table, {"f"})


@pytest.mark.slow
def test_dead_ranks_leave_the_plan_too(made: Artifact) -> None:
    model, plan = made.model(), made.plan
    assert plan is not None
    planned = next(p for p in plan.tables if p.method == "ordered_rank")
    table = model.get_submodule(planned.layer)
    assert isinstance(table, OrderedBag) and isinstance(table.decode, Affine)
    decoder = table.decode.stored.to_float()
    decoder[-1] = 0
    table.decode.stored.fill(decoder)
    fewer = drop_dead_(model, plan)
    (left,) = (p for p in fewer.layers if p.layer == planned.layer)
    assert left.settings["rank"] == planned.settings["rank"] - 1
    assert fewer.bytes_after == module_bytes(model) < plan.bytes_after


def ordered_model(features: Features) -> nn.Module:
    """A small model whose layers are of this method where they can be, thawed."""
    model = small_model(features)
    for name, layer in find(model, {}).layers.items():
        ordered = ordered_rank.candidates(layer.spec)
        if ordered:
            model.set_submodule(name, ordered_rank.compress(layer, ordered[0]))
    assert sum(isinstance(m, Ordered) for m in model.modules()) > 2
    thaw(model)
    return model


@pytest.mark.slow
def test_each_step_has_a_second_pass_that_imitates_the_first(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(epochs=1, batch_rows=600, embedding_l2=0.0, precision="float32")
    monkeypatch.setattr(fitting._Run, "take_best", lambda run: None)
    found, wanted = ordered_model(synth_features), ordered_model(synth_features)
    fit(found, Data(synth_log, synth_features), settings, tmp_path)
    parts = [m for m in wanted.modules() if isinstance(m, Ordered) and m.narrows]
    steps = optimizers(wanted.train(), settings, synth_log.rows("train"))
    shuffled = Shuffled(synth_log, synth_features, synth_log.pieces("train"), 600)
    for step, batch in enumerate(shuffled.batches((0, 0))):
        now = Progress("final", step, 16, 16, 0)
        which = torch.randint(len(parts), (), generator=now.drawn(1))
        for optimizer in steps:
            optimizer.zero_grad()
        logits = wanted(batch.dense, batch.sparse)
        with parts[int(which)].narrowed(now):
            narrow = wanted(batch.dense, batch.sparse)
        loss = binary_cross_entropy_with_logits(logits, batch.labels)
        loss = loss + binary_cross_entropy_with_logits(narrow, logits.detach().sigmoid())
        penalties = [part.penalty() for part in parts]
        sum(penalties, loss).backward()  # type: ignore[arg-type]
        for optimizer in steps:
            optimizer.step()
    for name, tensor in wanted.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_a_run_that_narrows_goes_on_as_if_it_had_never_stopped(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=1, batch_rows=512, checkpoint_rows=1024, embedding_l2=10.0)

    def trained(folder: str, kill_after: int = -1) -> nn.Module:
        model, steps = ordered_model(synth_features), 0

        def watch(report: object) -> None:
            nonlocal steps
            steps += 1
            if steps == kill_after:
                raise Killed

        fit(model, Data(synth_log, synth_features), settings, tmp_path / folder, watch=watch)
        freeze(model)
        return model

    whole = trained("whole")
    with pytest.raises(Killed):
        trained("killed", kill_after=12)
    again = trained("killed")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
