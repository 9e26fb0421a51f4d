"""Artifacts that stand alone: what is scored without the model's code is what the model gives."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import embedcomp
from embedcomp import methods
from embedcomp.errors import BadArtifact, BadRequest
from embedcomp.graph.export import rebatched
from embedcomp.graph.lookups import CannotExport
from embedcomp.sensitivity.layer import LinearSpec, Spec
from embedcomp.sensitivity.layers import find
from tests.cases import CASES, DIM, ROWS, TABLES, B, Case, dlrm, kjt, reads_weight, tabular
from tests.cli.test_commands import run

CLOSE = 3e-6  # deepfm takes the difference of large sums, which float32 rounds
# the last bit of a sum can decide to which of its steps an input is rounded
FURTHER = {"half": 2e-3, "dense_int8": 2e-3}
BY_TORCH = {"feature_processed", "sequences", "managed_collisions", "plain"}
# which take tables in order of count: tests/methods/test_tiers.py
BY_COUNT = ("frequency_tiers", "trellis_coded")
SWAPS: list[dict[str, Any]] = [
    {},
    *({"method": name} for name in methods.every() if name not in ("keep", *BY_COUNT)),
    *(
        {"method": "low_rank", "rank": 5, "storage": storage}
        for storage in ("float32", "float16", "column_int8", "column_int4", "column_mixed3")
    ),
    {"method": "low_rank", "rank": 0},
    {"method": "product_quantization", "parts": 2, "bits": 4},
    {"method": "product_quantization", "parts": 2, "bits": 8, "rotation": True},
    {"method": "weight_clustering", "bits": 3},
    {"method": "sparse_dictionary", "row_atoms": 2, "atoms": 16},
]
MIXED: dict[str, Any] = {"method": "low_rank", "rank": 5, "storage": "column_mixed3"}


every_case = pytest.mark.parametrize(
    "make", [c for c in CASES if c is not reads_weight], ids=lambda c: c.__name__
)


def probabilities(case: Case, inputs: Any) -> np.ndarray:
    with torch.no_grad():
        return torch.sigmoid(case.score(case.model, inputs)).reshape(-1).numpy()


def swapped(case: Case, swap: dict[str, Any]) -> None:
    """Swap every layer that takes the method, where no settings are given by a middling one."""
    if not swap:
        return
    plan, found = {}, find(case.model, {}).layers
    for layer in embedcomp.explain(case.model):
        if swap["method"] in layer.methods:
            plan[layer.layer] = swap | _settings(swap, found[layer.layer].spec)
    if not plan:
        pytest.skip(f"{swap['method']} takes no layer of this model")
    embedcomp.swap_(case.model, plan)


def _settings(swap: dict[str, Any], spec: Spec) -> dict[str, Any]:
    if swap.get("rank"):
        return {"rank": min(2, spec.inputs, spec.outputs)} if isinstance(spec, LinearSpec) else {}
    if "rank" in swap:
        return {}
    tried = methods.get(swap["method"]).candidates(spec)
    return asdict(tried[len(tried) // 2])


def saved(case: Case, folder: Path, **settings: Any) -> embedcomp.Scorer:
    made = embedcomp.save(
        case.model, folder / "m", score=case.score, example=case.inputs(1), **settings
    )
    return embedcomp.Scorer(made)


class Stored(NamedTuple):
    """A swapped model with its artifact, which tests only read."""

    case: Case
    folder: Path

    def opened(self, **settings: Any) -> embedcomp.Scorer:
        return embedcomp.Scorer.open(self.folder, **settings)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Stored]:
    """Makes the artifact of a model and a swap once."""
    known: dict[str, Stored] = {}

    def store(make: Callable[[], Case], swap: dict[str, Any]) -> Stored:
        name = f"{make.__name__}-{_told(swap)}"
        if name not in known:
            torch.manual_seed(0)
            case, folder = make(), tmp_path_factory.mktemp("stored")
            case.model.eval()
            swapped(case, swap)
            saved(case, folder)
            known[name] = Stored(case, folder / "m")
        return known[name]

    return store


def _told(swap: dict[str, Any]) -> str:
    return "_".join(map(str, swap.values())) or "kept"


# two swaps on every model, and on one model those whose scores may be further off;
# `make test-all` has them all
PAIRS = [
    pytest.param(
        case,
        swap,
        id=f"{case.__name__}-{_told(swap)}",
        marks=[]
        if swap in ({}, MIXED) or (case is dlrm and swap["method"] in FURTHER)
        else [pytest.mark.matrix],
    )
    for case in CASES
    if case is not reads_weight
    for swap in SWAPS
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("make", "swap"), PAIRS)
def test_scores_are_the_models(
    make: Callable[[], Case], swap: dict[str, Any], stored: Callable[..., Stored]
) -> None:
    made = stored(make, swap)
    scorer, method = made.opened(), swap.get("method", "")
    close = FURTHER.get(method, CLOSE)
    if method == "dense_int8" and not scorer.engine.startswith("compiled"):
        close = 2e-2  # torch multiplies what was stored as bytes in float32
    scored_as_the_model(made.case, scorer, close)


def scored_as_the_model(case: Case, scorer: embedcomp.Scorer, close: float = CLOSE) -> None:
    inputs = case.inputs(2)
    found = scorer.score(inputs)
    np.testing.assert_allclose(found, probabilities(case, inputs), atol=close)
    # a row's score does not depend on the rows around it
    if scorer.engine.startswith("compiled"):
        for rows in ([7], [3, 40, 7]):
            few = scorer.score(rebatched(inputs, B, torch.tensor(rows)))
            assert np.array_equal(few, found[rows])
    assert len(scorer.score(rebatched(inputs, B, torch.arange(0)))) == 0


@pytest.mark.slow
def test_scores_are_the_models_whatever_swap_each_layer_has(tmp_path: Path) -> None:
    """Every layer has another swap in each turn, until tables and linear layers have had all."""
    taken = embedcomp.explain(dlrm().model)
    swaps = [swap for swap in SWAPS if swap and swap["method"] not in FURTHER]
    left = [
        (kind, swap)
        for swap in swaps
        for kind in {told.kind for told in taken if swap["method"] in told.methods}
    ]
    assert len(left) > len(swaps)
    for turn in itertools.count():
        torch.manual_seed(turn)
        case = dlrm()
        case.model.eval()
        plan, found = {}, find(case.model, {}).layers
        for layer in taken:
            of_kind = [swap for kind, swap in left if kind == layer.kind]
            for swap in [swap for swap in of_kind if swap["method"] in layer.methods][:1]:
                left.remove((layer.kind, swap))
                plan[layer.layer] = swap | _settings(swap, found[layer.layer].spec)
        if not plan:
            break
        embedcomp.swap_(case.model, plan)
        scorer = saved(case, tmp_path / str(turn))
        assert scorer.engine.startswith("compiled engine"), (plan, scorer.engine)
        scored_as_the_model(case, scorer)
    assert not left


@pytest.mark.slow
@every_case
def test_the_engine_runs_what_it_can(
    make: Callable[[], Case], stored: Callable[..., Stored]
) -> None:
    by = "torch, since" if make.__name__ in BY_TORCH else "compiled engine"
    assert stored(make, {}).opened().engine.startswith(by)


@pytest.mark.sampled(4)
@every_case
def test_torch_scores_the_same_where_the_engine_was_not_built(
    make: Callable[[], Case], stored: Callable[..., Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stored(make, MIXED)
    inputs = made.case.inputs(2)
    found = made.opened().score(inputs)
    monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    scorer = made.opened()
    assert scorer.engine.startswith("torch")
    np.testing.assert_allclose(scorer.score(inputs), found, atol=CLOSE)
    one = rebatched(inputs, B, torch.tensor([5]))
    np.testing.assert_allclose(scorer.score(one), found[5:6], atol=CLOSE)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@every_case
def test_other_products_are_close(
    make: Callable[[], Case], precision: str, stored: Callable[..., Stored]
) -> None:
    made = stored(make, MIXED)
    if made.opened().engine.startswith("compiled"):
        inputs, scorer = made.case.inputs(2), made.opened(precision=precision)
        assert scorer.engine.endswith(precision)
        wanted = probabilities(made.case, inputs)
        np.testing.assert_allclose(scorer.score(inputs), wanted, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_products_are_those_that_were_asked_for_when_it_was_saved(
    tmp_path: Path, precision: str
) -> None:
    torch.manual_seed(0)
    case = dlrm()
    case.model.eval()
    swapped(case, MIXED)
    scorer, inputs = saved(case, tmp_path, precision=precision), case.inputs(2)
    assert scorer.engine.endswith(precision)
    np.testing.assert_allclose(scorer.score(inputs), probabilities(case, inputs), atol=0.02)
    same = embedcomp.Scorer.open(tmp_path / "m", precision="float32").score(inputs)
    np.testing.assert_allclose(same, probabilities(case, inputs), atol=CLOSE)


def test_several_threads_give_the_same_scores(tmp_path: Path) -> None:
    case = dlrm()
    case.model.eval()
    saved(case, tmp_path)
    inputs = rebatched(case.inputs(2), B, torch.arange(400) % B)
    one, two = (
        embedcomp.Scorer.open(tmp_path / "m", threads=threads).score(inputs) for threads in (1, 2)
    )
    assert np.array_equal(one, two)


@every_case
def test_a_fresh_model_is_filled_and_gives_the_same_bits(
    make: Callable[[], Case], stored: Callable[..., Stored]
) -> None:
    made, fresh = stored(make, MIXED), make()
    inputs = made.case.inputs(2)
    wanted = probabilities(made.case, inputs)
    fresh.model.eval()
    embedcomp.load_(fresh.model, made.folder)
    assert np.array_equal(probabilities(fresh, inputs), wanted)


def test_another_model_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    case, other = dlrm(), tabular()
    saved(case, tmp_path)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(BadArtifact, match="is not of this model"):
        embedcomp.load_(other.model, tmp_path / "m")
    after = other.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


SOURCE = """
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

class Vanishing(nn.Module):
    def __init__(self):
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=f"t{f}", num_embeddings=60, embedding_dim=8, feature_names=[f])
            for f in "abcd"
        ]
        self.tables = EmbeddingBagCollection(tables=tables)
        self.top = nn.Sequential(nn.Linear(35, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense, sparse):
        return self.top(torch.cat([self.tables(sparse).values(), dense], 1)).squeeze(1)
"""
SCORE = """
import sys
import numpy as np, torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
import embedcomp
held = torch.load(sys.argv[2])
sparse = KeyedJaggedTensor(keys=list("abcd"), values=held["values"], lengths=held["lengths"])
try:
    import vanishing
    raise SystemExit("the model's source is still there")
except ModuleNotFoundError:
    pass
np.save(sys.argv[3], embedcomp.Scorer.open(sys.argv[1]).score((held["dense"], sparse)))
"""


@pytest.mark.slow
def test_an_artifact_outlives_its_models_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "vanishing.py"
    source.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import vanishing

    torch.manual_seed(0)
    case = Case(vanishing.Vanishing().eval(), dlrm().inputs, lambda model, x: model(*x).view(-1))
    embedcomp.swap_(case.model, {TABLES.replace("embedding_bags", "tables"): "row_int8"})
    saved(case, tmp_path)
    dense, sparse = case.inputs(3)
    wanted = probabilities(case, (dense, sparse))
    source.unlink()
    torch.save(
        {"dense": dense, "values": sparse.values(), "lengths": sparse.lengths()}, tmp_path / "x"
    )
    arguments = [str(tmp_path / "m"), str(tmp_path / "x"), str(tmp_path / "scores.npy")]
    subprocess.run([sys.executable, "-c", SCORE, *arguments], check=True, env=os.environ)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), wanted, rtol=0, atol=1e-6)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(ROWS, DIM), nn.Linear(DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        if x.sum() > 0:
            x = x * 2
        return self.out(x).squeeze(1)


class Remembers(Branching):
    """Keeps a number of the example's."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids)).squeeze(1) * float(len(ids))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), r"cannot follow the model at .*test_stand_alone\.py:\d+"),
        (Remembers(), "fixes the number of rows|gives other scores|does not run"),
        (reads_weight().model, "reads the rows of table themselves"),
        (nn.Embedding(ROWS, 1), "an embedding module itself"),
    ],
    ids=["branch", "length", "weight", "bare"],
)
def test_what_cannot_stand_alone_is_refused(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(CannotExport, match=message):
        embedcomp.save(
            model,
            tmp_path / "m",
            score=lambda m, x: m(x).reshape(-1),
            example=torch.randint(0, ROWS, (B,)),
        )
    assert not (tmp_path / "m").exists()


class Sharp(nn.Module):
    """What is easily traced wrongly: work in place, zeros, and arguments with names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(ROWS, DIM), nn.Linear(DIM, 1)
        self.mix, self.shift = nn.Parameter(torch.randn(DIM, DIM)), nn.Parameter(torch.randn(DIM))
        self.rectify = nn.ReLU(inplace=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + 0.0
        rectified = self.rectify(x)  # x is rectified too
        x = torch.addmm(self.shift, x - 0.5, self.mix, beta=0.5, alpha=2.0) + rectified
        x = nn.functional.dropout(x, 0.5, training=self.training) - torch.rsub(x, 1.0, alpha=0.25)
        spread = 1 + x.square().sum(dim=1, keepdim=True)
        return self.out(x / 3 - x.mean(1, keepdim=True) / spread).squeeze(1)


@pytest.mark.slow
def test_what_is_easily_traced_wrongly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(Sharp().eval(), lambda s: tabular().inputs(s)["ids"][:, 0], lambda m, x: m(x))
    inputs = case.inputs(2)
    scorer = saved(case, tmp_path)
    assert scorer.engine.startswith("compiled engine"), "what was traced is not what the model does"
    np.testing.assert_allclose(scorer.score(inputs), probabilities(case, inputs), atol=CLOSE)


class Sorting(nn.Module):
    """Works in place, which the engine can follow, and sorts, which it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(ROWS, DIM), nn.Linear(DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids).relu_().sort(1).values).squeeze(1)


@pytest.mark.slow
def test_the_reason_for_torch_is_what_the_engine_lacks(tmp_path: Path) -> None:
    case = Case(Sorting().eval(), lambda s: torch.arange(B) % ROWS, lambda m, x: m(x))
    scorer = saved(case, tmp_path)
    assert scorer.engine.startswith("torch, since the engine has no sort ")
    np.testing.assert_allclose(scorer.score(case.inputs(1)), probabilities(case, case.inputs(1)))


class Hollow(nn.Module):
    """Its first layer reads nothing, as one whose inputs were all compressed away."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(ROWS, DIM), nn.Linear(0, DIM)
        nn.init.normal_(self.first.bias)
        self.out = nn.Linear(DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.out(x * self.first(x[:, :0])).squeeze(1)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_weight_without_numbers_hides_no_other(tmp_path: Path) -> None:
    case = Case(Hollow().eval(), lambda s: torch.arange(B) % ROWS, lambda m, x: m(x))
    scorer = saved(case, tmp_path)
    assert scorer.engine.startswith("compiled engine"), scorer.engine
    found, wanted = scorer.score(case.inputs(1)), probabilities(case, case.inputs(1))
    np.testing.assert_allclose(found, wanted, atol=CLOSE)


class Padded(Branching):
    """Has a row for padding that is not zero, as one that is filled after it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, DIM, padding_idx=3)
        nn.init.normal_(self.table.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids)).squeeze(1)


def test_a_row_for_padding_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(Padded().eval(), lambda s: torch.arange(B) % ROWS, lambda m, x: m(x))
    scorer = saved(case, tmp_path)
    assert scorer.engine.startswith("compiled engine")
    ids = torch.arange(ROWS)
    np.testing.assert_allclose(scorer.score(ids), probabilities(case, ids), atol=CLOSE)


class Attends(nn.Module):
    """Softmaxes of large numbers, of several dimensions, and products of batches of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(ROWS, DIM), nn.Linear(DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).unflatten(2, (2, -1)).transpose(1, 2)  # [B, heads, columns, d / 2]
        seen = torch.softmax(100 * x @ x.transpose(2, 3), -1) @ x
        x = seen + x * torch.nn.functional.softmax(x, dim=1) + x.softmax(2, dtype=torch.float32)
        return self.out(x.transpose(1, 2).flatten(2).mean(1)).squeeze(1)


class AttendsInPlace(Attends):
    """Has its products and softmaxes decomposed, because of an operation in place."""

    def forward(self, ids: Tensor) -> Tensor:
        x = super().forward(ids)
        return x.mul_(2.0) + x


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Attends, AttendsInPlace])
def test_the_engine_attends(kind: type[Attends], tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(kind().eval(), lambda s: tabular().inputs(s)["ids"], lambda m, x: m(x))
    inputs = case.inputs(2)
    scorer = saved(case, tmp_path)
    assert scorer.engine.startswith("compiled engine")
    np.testing.assert_allclose(scorer.score(inputs), probabilities(case, inputs), atol=CLOSE)


class OverRows(Attends):
    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.softmax(self.table(ids[:, 0]), 0)).squeeze(1)


@pytest.mark.slow
def test_a_softmax_over_the_rows_of_a_batch_is_left_to_torch(tmp_path: Path) -> None:
    case = Case(OverRows().eval(), lambda s: tabular().inputs(s)["ids"], lambda m, x: m(x))
    scorer = saved(case, tmp_path)
    assert scorer.engine.startswith("torch, since the engine has no softmax")


def test_a_model_that_is_being_trained_is_not_saved(tmp_path: Path) -> None:
    case = dlrm()
    swapped(case, SWAPS[1])
    embedcomp.thaw_(case.model)
    with pytest.raises(CannotExport, match=r"is being trained; call embedcomp\.freeze_"):
        saved(case, tmp_path)


def test_a_model_of_another_width_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    case, other = dlrm(), dlrm()
    saved(case, tmp_path)
    other.model.over_arch.model[1] = nn.Linear(16, 2)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(BadArtifact, match=r"over_arch\.model\.1\.weight is \(1, 16\) instead of"):
        embedcomp.load_(other.model, tmp_path / "m")
    after = other.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_torch_refuses_several_users_as_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = dlrm()
    case.model.eval()
    saved(case, tmp_path, user=["a"])
    monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    scorer = embedcomp.Scorer.open(tmp_path / "m")
    assert scorer.engine.startswith("torch")
    with pytest.raises(BadRequest, match="'a': differs between rows"):
        scorer.score(case.inputs(3), one_user=True)


WITHOUT_TORCH = """
import sys
import pyarrow as pa
import embedcomp
scorer = embedcomp.Scorer.open(sys.argv[1])
types = {name: scorer.features.column_type(name) for name in scorer.features.names}
rows = pa.RecordBatch.from_pydict({name: pa.nulls(3, kind) for name, kind in types.items()})
assert len(scorer.score(rows)) == 3
print(sorted({"torch", "torchrec", "fbgemm_gpu"} & sys.modules.keys()))
"""


@pytest.mark.slow
def test_scoring_imports_no_torch() -> None:
    path = Path(__file__).parent.parent / "data/format_2"
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path)]
    done = subprocess.run(command, check=True, env=os.environ, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("swap", [MIXED, {}], ids=["factors", "whole"])
def test_one_users_part_is_computed_once_and_scores_are_identical(
    tmp_path: Path, swap: dict[str, Any]
) -> None:
    case = dlrm()
    case.model.eval()
    swapped(case, swap)
    scorer = saved(case, tmp_path, user=("a", "c"))
    dense, sparse = rebatched(case.inputs(3), B, torch.zeros(64, dtype=torch.long))
    others = rebatched(case.inputs(4)[1], B, torch.arange(64) % B)
    parts = [(sparse if key in "ac" else others)[key] for key in "abcd"]
    mixed = type(sparse)(
        keys=list("abcd"),
        values=torch.cat([part.values() for part in parts]),
        lengths=torch.cat([part.lengths() for part in parts]),
    )
    dense = torch.randn(64, dense.shape[1])
    whole = scorer.score((dense, mixed))
    assert np.array_equal(scorer.score((dense, mixed), one_user=True), whole)
    np.testing.assert_allclose(whole, probabilities(case, (dense, mixed)), atol=CLOSE)
    with pytest.raises(BadRequest, match=r"'[ac]': differs between rows"):
        scorer.score(case.inputs(3), one_user=True)
    with pytest.raises(BadRequest, match="give the user's columns apart"):
        scorer.score(pa.RecordBatch.from_pydict({"a": [1]}), one_user=True)


def test_an_unknown_user_feature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotExport, match="the user's feature 'z' is none of the inputs'"):
        saved(dlrm(), tmp_path, user=["z"])


def test_an_artifact_of_ones_own_model_is_described_and_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(dlrm(), tmp_path)
    assert run(monkeypatch, "inspect", tmp_path / "m") == 0
    assert "its owner's model" in capsys.readouterr().out
    compress = "compress", tmp_path / "m", "--log", "l", "--budget", "2x", "--out", "o"
    assert run(monkeypatch, *compress) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_features_may_come_in_another_order(tmp_path: Path) -> None:
    case = dlrm()
    case.model.eval()
    scorer = saved(case, tmp_path)
    dense, sparse = case.inputs(3)
    turned = sparse.permute([2, 0, 3, 1])
    assert np.array_equal(scorer.score((dense, turned)), scorer.score((dense, sparse)))
    with pytest.raises(BadRequest, match="'d': is missing"):
        scorer.score((dense, kjt(3, ("a", "b", "c"))))
