"""Artifacts of tables that share rows by formulas: saved once, scored alike, loaded shared."""

from __future__ import annotations

import gzip
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import embedcomp
from embedcomp.kernels import native
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedBag
from embedcomp.storage.decode import Affine
from embedcomp.storage.index import Probed
from embedcomp.storage.probes import Combine, Digit, Permuted, Probe, Probes, hashed
from embedcomp.storage.rows import StoredRows
from embedcomp.swapping.swap import freeze, thaw
from tests import small

KEPT = 127
FORMS: list[tuple[str, Combine, bool]] = [
    *product(("float16", "column_int4"), ("concat", "add", "multiply"), (False, True)),
    ("row_int8", "concat", False),
    ("product1x8", "multiply", True),
]


def pooled(storage: str, combine: Combine, decoded: bool) -> small.Small:
    """The small model; its tables read one pool, the first by a hash, the last with own rows."""
    model = small.model()
    bags = model.embeddings.embedding_bags
    width = small.DIM // 2 if combine == "concat" and not decoded else small.DIM
    if decoded:
        width = 3
    generator = torch.manual_seed(0)
    first = 0
    for place, (name, rows) in enumerate(small.ROWS.items()):
        own = 9 if name == "c" else 0
        probes: tuple[Probe, ...] = tuple(
            hashed(rows, KEPT, salt=2 * place + j)
            if name == "a"
            else Permuted(rows=KEPT, first=first + j, stride=2)
            for j in range(2)
        )
        if name == "b":
            probes = (Digit(rows=7, divisor=6), probes[1])
        index = Probed(KEPT, Probes(probes=probes, combine=combine, own=own, own_start=60))
        first += 2 * rows
        decode = Affine(index.width(width), small.DIM, "float16", True) if decoded else None
        if decode is not None:
            weight = torch.randn(decode.k, small.DIM, generator=generator)
            decode.fill(weight, torch.randn(small.DIM, generator=generator))
        stored = StoredRows(KEPT, width, storage)
        bags[f"t_{name}"] = CompressedBag(
            rows, small.DIM, "mean", stored, decode=decode, index=index
        )
    bags["t_a"].fill(torch.randn(KEPT, width, generator=generator))
    for other in ("t_b", "t_c"):
        bags[other].store_with(bags["t_a"])
    return model.eval()


def score(model: nn.Module, x: Any) -> Tensor:
    return model(*x)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("built", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize(("storage", "combine", "decoded"), FORMS)
def test_an_artifact_scores_as_its_model(
    storage: str,
    combine: Combine,
    decoded: bool,
    built: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = pooled(storage, combine, decoded), small.batch(3)
    inputs = batch.dense, batch.sparse
    made = embedcomp.save(model, tmp_path / "m", score=score, example=inputs)
    if not built:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("the engine was not compiled")
    scorer = embedcomp.Scorer(made)
    with torch.no_grad():
        wanted = score(model, inputs).sigmoid().numpy()
    assert wanted.std() > 0.01
    np.testing.assert_allclose(scorer.score(inputs), wanted, atol=1e-5)
    rows = scorer.resident["embeddings.embedding_bags.t_a"]
    assert rows >= module_bytes(model.embeddings.embedding_bags["t_a"].stored) - 2 * 2 * small.DIM
    if not decoded and storage in ("float16", "row_int8"):
        assert rows == module_bytes(model.embeddings.embedding_bags["t_a"].stored)
        assert scorer.resident.get("embeddings.embedding_bags.t_b", 0) == 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("storage", "combine", "decoded"), FORMS)
def test_the_file_holds_a_pool_once_and_it_comes_back_shared(
    storage: str, combine: Combine, decoded: bool, tmp_path: Path
) -> None:
    model, batch = pooled(storage, combine, decoded), small.batch(3)
    inputs = batch.dense, batch.sparse
    made = embedcomp.save(model, tmp_path / "m", score=score, example=inputs)
    with safe_open(made.tensors_file, "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert stored == module_bytes(model) == made.manifest.bytes["total"]
    again = small.Small()
    embedcomp.load_(again, made.folder)
    bags = again.embeddings.embedding_bags
    assert bags["t_a"].stored is bags["t_b"].stored is bags["t_c"].stored
    assert module_bytes(again) == module_bytes(model)
    with torch.no_grad():
        assert torch.equal(score(again.eval(), inputs), score(model, inputs))


def test_a_pool_that_was_trained_scores_the_same_when_it_is_frozen(tmp_path: Path) -> None:
    model, batch = pooled("row_int8", "multiply", True), small.batch(3)
    inputs = batch.dense, batch.sparse
    thaw(model)
    masters = {id(p) for n, p in model.named_parameters() if n.endswith("t_a.stored.master")}
    assert len(masters) == 1
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with torch.no_grad():
        before = score(model.eval(), inputs)
    score(model.train(), inputs).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        trained = score(model.eval(), inputs)
        freeze(model)
        assert torch.equal(score(model, inputs), trained) and not torch.equal(trained, before)


@pytest.mark.slow
def test_a_table_without_formulas_is_described_as_it_always_was(tmp_path: Path) -> None:
    batch = small.batch(0)
    made = embedcomp.save(
        small.model(), tmp_path / "m", score=score, example=(batch.dense, batch.sparse)
    )
    assert made.standalone is not None
    text = (made.folder / "scoring.json.gz").read_bytes()
    assert b"probes" not in gzip.decompress(text)
