"""What fbgemm's operator looks up is what the engine does, whole and in slots."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import embedcomp
from embedcomp.engine.arrays import as_array
from embedcomp.engine.engine import BadId
from embedcomp.errors import BadSettings
from embedcomp.kernels import native, routing
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.settings import ShardSettings
from embedcomp.sharding.by_fbgemm import TYPES, Fbgemm, Rows
from embedcomp.sharding.pooled import Pooled
from embedcomp.storage.kind import RowByRow
from embedcomp.storage.kinds import named
from tests.sharding.cases import IDS, INDICES, InProcess, cut, front, inputs, model, save

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")

FORMS = [
    (storage, INDICES[place % 4], decoded)
    for place, storage in enumerate(TYPES)
    for decoded in ("", "affine")
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("storage", "form", "decoded"), FORMS)
def test_scores_are_those_of_the_engine(
    storage: str, form: str, decoded: str, tmp_path: Path
) -> None:
    whole = save(model(storage, form, decoded), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    one = embedcomp.Scorer(whole)
    single, bags = inputs(150, most=1), inputs(150, seed=1, most=5)
    ways = {
        "whole": embedcomp.Scorer(whole, lookups="fbgemm"),
        "slots": front(made, InProcess(made, 3, lookups="fbgemm")),
    }
    assert "fbgemm (3 tables)" in ways["whole"].engine and "fbgemm" not in one.engine
    for other in ways.values():
        assert np.array_equal(other.score(single), one.score(single))
        np.testing.assert_allclose(other.score(bags), one.score(bags), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_tables_that_fbgemm_does_not_read_are_the_engines(tmp_path: Path) -> None:
    made = model("column_int8")
    made.tables.embedding_bags["t_one"] = model("row_int4").tables.embedding_bags["t_one"]
    whole = save(made, tmp_path / "whole", inputs(5))
    by_fbgemm = embedcomp.Scorer(whole, lookups="fbgemm")
    assert "fbgemm (1 tables)" in by_fbgemm.engine
    shards = InProcess(cut(whole, tmp_path / "cut"), 2, lookups="fbgemm")
    given, one = inputs(80), embedcomp.Scorer(whole)
    for other in (by_fbgemm, front(cut(whole, tmp_path / "again"), shards)):
        np.testing.assert_allclose(other.score(given), one.score(given), rtol=0, atol=1e-6)


def test_weights_of_ids_count(tmp_path: Path) -> None:
    example = inputs(5, weighted=True)
    whole = save(model("row_int8", "map", weighted=True), tmp_path / "whole", example)
    given = inputs(80, seed=3, weighted=True)
    found = embedcomp.Scorer(whole, lookups="fbgemm").score(given)
    np.testing.assert_allclose(found, embedcomp.Scorer(whole).score(given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("id", [-1, IDS["one"], 1 << 40])
def test_an_id_out_of_range_is_told_as_by_the_engine(id: int, tmp_path: Path) -> None:
    whole = save(model("float16"), tmp_path / "whole", inputs(5))
    dense, sparse = inputs(4)
    values = sparse.values().clone()
    values[2] = id
    wrong = type(sparse)(keys=sparse.keys(), values=values, lengths=sparse.lengths())
    with pytest.raises(BadId, match="feature 'one' has id"):
        embedcomp.Scorer(whole, lookups="fbgemm").score((dense, wrong))


class Message:
    """Parts of random bags, as a front asks for them, and what they are."""

    def __init__(self, random: np.random.Generator, ids: list[int]):
        self.parts: list[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]] = []
        words: list[Any] = []
        for table in random.integers(0, len(ids), 7):
            counts = random.integers(0, 4, random.integers(1, 6))
            asked = random.integers(0, ids[table], counts.sum())
            asked[: len(asked) // 2] = random.choice([0, ids[table] - 1], len(asked) // 2)
            weights = (
                random.random(len(asked)).astype(np.float32) if random.random() < 0.5 else None
            )
            self.parts.append((int(table), counts, asked, weights))
            words += [table, len(counts), len(asked), int(weights is not None), *counts, *asked]
            words += [] if weights is None else weights.view(np.uint32).tolist()
        self.words = np.array([0x31534345, 7, 1, 0, *words], np.uint32)

    def wanted(self, values: list[np.ndarray]) -> np.ndarray:
        """The answer, by plain sums."""
        found: list[float] = []
        for table, counts, asked, weights in self.parts:
            at = 0
            for count in counts:
                own = slice(at, at + count)
                times = np.ones(count) if weights is None else weights[own].astype(np.float64)
                found += (times[:, None] * values[table][asked[own]]).sum(0).tolist()
                found.append(times.sum())
                at += count
        return np.array(found)


@pytest.mark.parametrize("seed", range(8))
def test_pooled_rows_are_plain_sums(seed: int) -> None:
    """Random widths, copied and in place together, bags of none, ids at the ends."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    tables: dict[int, Rows] = {}
    values, held = [], []
    structs = (routing.Slotted * 6)()
    for number in range(6):
        kind = named(random.choice(list(TYPES)))
        assert isinstance(kind, RowByRow)
        width, ids = int(random.integers(1, 40)), int(random.integers(2, 50))
        stored = kind.encode(torch.randn(ids, width), None).contiguous()
        values.append(kind.decode(stored, None, width).double().numpy())
        array = as_array(stored)
        located = kind.located({"stored": array}, ids, width, -1)
        slot = (ctypes.c_void_p * 1)(ctypes.addressof(located.rows))
        held += [array, located, slot]
        structs[number] = routing.Slotted(
            slots=ctypes.addressof(slot), num_ids=ids, width=width, number=1
        )
        if number != 2:  # which the engine looks up in the same message
            tables[number] = Rows(kind, width, (array,), in_place=bool(number % 2))

    pooled = Pooled(structs, 6, 1)
    pooled.have(Fbgemm(tables))
    for _ in range(20):
        message = Message(random, [struct.num_ids for struct in structs])
        found = pooled.pool(message.words)
        np.testing.assert_allclose(found, message.wanted(values), rtol=1e-5, atol=1e-5)


def test_floats_of_whole_tables_are_read_where_they_lie() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    of_floats = Rows(named("float32"), 2, (rows,), in_place=True)
    assert Fbgemm({0: of_floats}).copied_bytes == 0
    assert Fbgemm({0: Rows(named("float32"), 2, (rows, rows))}).copied_bytes == 64
    codes = as_array(named("row_int8").encode(torch.randn(4, 2), None))  # type: ignore[attr-defined]
    assert Fbgemm({0: Rows(named("row_int8"), 2, (codes,), in_place=True)}).copied_bytes == 4 * 6


def test_without_fbgemm_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = save(model("float16"), tmp_path / "whole", inputs(5))
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)
    with pytest.raises(BadSettings, match=r"fbgemm_gpu is missing; .* leave --lookups at auto"):
        embedcomp.Scorer(whole, lookups="fbgemm")
    embedcomp.Scorer(whole, lookups="auto")


def test_settings_say_who_may_look_up_rows() -> None:
    for settings in (ServerSettings, ShardSettings):
        with pytest.raises(BadSettings, match="lookups is 'torch', but must be auto, engine"):
            settings(lookups="torch")
    with pytest.raises(BadSettings, match="give --lookups to `embedcomp shard`"):
        ServerSettings(lookups="fbgemm", shards=("127.0.0.1:1",))
