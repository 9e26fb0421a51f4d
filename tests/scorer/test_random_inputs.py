"""Whatever is sent, the answer is the model's score or a sentence, and never a crash."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from embedcomp.artifact.artifact import Artifact
from embedcomp.errors import EmbedcompError
from embedcomp.log.batches import to_batch
from embedcomp.log.features import Features
from tests.cases import DENSE, ROWS, TABLES, Case, dlrm, sequences, tabular

CASES_EACH = 600
often = settings(
    max_examples=CASES_EACH,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = ["a", "b", "c", "d"]

ids = st.one_of(
    *[st.integers(0, ROWS - 1)] * 30,
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([-1, ROWS, 2**31, 2**62]),
)
numbers = st.one_of(
    *[st.floats(-5, 5, width=32)] * 30,
    st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45]),
)


def scorer_of(case: Case, folder: Path, swap: dict[str, Any] | None = None) -> embedcomp.Scorer:
    torch.manual_seed(0)
    case.model.eval()
    if swap:
        embedcomp.swap_(case.model, swap)
    made = embedcomp.save(case.model, folder / "m", score=case.score, example=case.inputs(1))
    return embedcomp.Scorer(made)


@pytest.fixture(scope="module")
def of_dlrm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, embedcomp.Scorer]:
    case = dlrm()
    swap = {TABLES: {"method": "low_rank", "rank": 5, "storage": "column_mixed4"}}
    return case, scorer_of(case, tmp_path_factory.mktemp("dlrm"), swap)


@pytest.fixture(scope="module")
def of_tabular(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, embedcomp.Scorer]:
    case = tabular()
    return case, scorer_of(case, tmp_path_factory.mktemp("tabular"), {"tables.*": "row_int8"})


@pytest.fixture(scope="module")
def of_sequences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, embedcomp.Scorer]:
    case = sequences()
    return case, scorer_of(case, tmp_path_factory.mktemp("sequences"))


def jagged(lengths: list[int], values: list[int], keys: list[str]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.tensor(values, dtype=torch.long),
        lengths=torch.tensor(lengths, dtype=torch.long),
    )


@st.composite
def bags(draw: st.DrawFn, keys: list[str], rows: int) -> KeyedJaggedTensor:
    """Mostly sound; sometimes lengths that do not fit."""
    count = len(keys) * rows
    lengths = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    total = sum(lengths)
    values = draw(st.lists(ids, min_size=total, max_size=total))
    broken = draw(st.integers(0, 19))
    if broken == 0 and lengths:
        lengths[draw(st.integers(0, count - 1))] += draw(st.sampled_from([1, -4, 2**40]))
    return jagged(lengths, values, keys)


def dense_of(draw: st.DrawFn, rows: int) -> Tensor:
    count = rows * DENSE
    drawn = draw(st.lists(numbers, min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=torch.float32).view(rows, DENSE)


def sound(tensor: Tensor) -> bool:
    return bool(((tensor >= 0) & (tensor < ROWS)).all())


def is_right(case: Case, scorer: embedcomp.Scorer, inputs: Any, valid: bool, rows: int) -> None:
    """The model's score where the input is valid, else an error of embedcomp's."""
    wanted = np.empty(0)
    if valid and rows:
        with torch.no_grad():
            wanted = torch.sigmoid(case.score(case.model, inputs).reshape(-1)).numpy()
    if valid and np.isfinite(wanted).all():
        found = scorer.score(inputs)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(EmbedcompError):
            scorer.score(inputs)


@pytest.mark.slow
@often
@given(data=st.data())
def test_dense_and_bags(of_dlrm: tuple[Case, embedcomp.Scorer], data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 5))
    sparse, dense = data.draw(bags(KEYS, rows)), data.draw(st.composite(dense_of)(rows))
    lengths = sparse.lengths()
    valid = (
        bool((lengths >= 0).all())
        and int(lengths.sum()) == len(sparse.values())
        and sound(sparse.values())
        and bool(torch.isfinite(dense).all())
    )
    is_right(*of_dlrm, (dense, sparse), valid, rows)


@pytest.mark.slow
@often
@given(data=st.data())
def test_a_matrix_of_ids(of_tabular: tuple[Case, embedcomp.Scorer], data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(0, 5)), data.draw(st.sampled_from([4] * 9 + [3]))
    drawn = data.draw(st.lists(ids, min_size=rows * width, max_size=rows * width))
    matrix = torch.tensor(drawn, dtype=torch.long).view(rows, width)
    dense = data.draw(st.composite(dense_of)(rows))
    valid = width == 4 and sound(matrix) and bool(torch.isfinite(dense).all())
    is_right(*of_tabular, {"ids": matrix, "dense": dense}, valid, rows)


@pytest.mark.slow
@settings(often, max_examples=300)
@given(data=st.data())
def test_sequences_scored_by_torch(
    of_sequences: tuple[Case, embedcomp.Scorer], data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 4))
    sparse = data.draw(bags(["a", "b"], rows))
    lengths = sparse.lengths()
    fits = bool((lengths >= 0).all()) and int(lengths.sum()) == len(sparse.values())
    is_right(*of_sequences, sparse, fits and sound(sparse.values()), rows)


def values(one: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of(st.none(), one), min_size=3, max_size=3)


COLUMNS = {
    pa.int64(): values(st.integers(-(2**63), 2**63 - 1)),
    pa.string(): values(st.text(max_size=4)),
    pa.float32(): values(st.floats(width=32)),
    pa.list_(pa.string()): values(st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=3)),
}


@pytest.mark.slow
@often
@given(data=st.data())
def test_raw_columns(
    format_2: tuple[nn.Module, embedcomp.Scorer, Features], data: st.DataObject
) -> None:
    """Columns of any type and with any values, missing ones too."""
    model, scorer, known = format_2
    columns, fits = {}, True
    for name in known.names:
        kind = known.column_type(name)
        choice = data.draw(st.integers(0, 39))
        if choice == 0:  # left out
            fits = False
            continue
        if choice == 1:  # of another type, unless there is nothing but nulls
            kind = data.draw(st.sampled_from([k for k in COLUMNS if k != kind]))
        columns[name] = pa.array(data.draw(COLUMNS[kind]), kind)
        numbers = kind in (pa.int64(), pa.float32())
        right = kind == known.column_type(name) or columns[name].null_count == 3
        right |= numbers and known.column_type(name) == pa.float32()
        fits &= right and not (kind == pa.float32() and np.isinf(columns[name]).any())
    if not columns:
        return
    rows = pa.RecordBatch.from_pydict(columns)
    if not fits:
        with pytest.raises(EmbedcompError):
            scorer.score(rows)
        return
    batch = to_batch(known.encode(columns, 3), known.keys)
    with torch.no_grad():
        wanted = torch.sigmoid(model(batch.dense, batch.sparse).view(-1)).numpy()
    if not np.isfinite(batch.dense).all() or not np.isfinite(wanted).all():
        with pytest.raises(EmbedcompError):
            scorer.score(rows)
        return
    found = scorer.score(rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    # each row alone has the same score, bit for bit
    alone = [scorer.score(rows.slice(i, 1)) for i in range(3)]
    assert np.array_equal(np.concatenate(alone), found)


@pytest.fixture(scope="module")
def format_2() -> tuple[nn.Module, embedcomp.Scorer, Features]:
    opened = Artifact.open(Path(__file__).parent.parent / "data/format_2")
    return opened.model(), embedcomp.Scorer(opened), opened.features
