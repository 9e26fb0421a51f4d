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
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from embedcomp.errors import EmbedcompError
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
    try:
        found = scorer.score(inputs)
    except EmbedcompError:
        if valid and rows:
            with torch.no_grad():
                wanted = case.score(case.model, inputs)
            assert not bool(torch.isfinite(wanted).all()), "a sound request was refused"
        return
    assert valid
    assert found.shape == (rows,)
    if rows:
        with torch.no_grad():
            wanted = torch.sigmoid(case.score(case.model, inputs).reshape(-1)).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


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


@often
@given(data=st.data())
def test_a_matrix_of_ids(of_tabular: tuple[Case, embedcomp.Scorer], data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(0, 5)), data.draw(st.sampled_from([4] * 9 + [3]))
    drawn = data.draw(st.lists(ids, min_size=rows * width, max_size=rows * width))
    matrix = torch.tensor(drawn, dtype=torch.long).view(rows, width)
    dense = data.draw(st.composite(dense_of)(rows))
    valid = width == 4 and sound(matrix) and bool(torch.isfinite(dense).all())
    is_right(*of_tabular, {"ids": matrix, "dense": dense}, valid, rows)


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


COLUMN = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=3, max_size=3),
    st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=3)),
        min_size=3,
        max_size=3,
    ),
)


@often
@given(data=st.data())
def test_raw_columns(format_2: embedcomp.Scorer, data: st.DataObject) -> None:
    """Columns of any type and with any values, missing ones too."""
    known = format_2.features
    columns = {}
    for name in known.names:
        kind = known.column_type(name)
        fitting = {
            pa.int64(): COLUMN.original_strategies[0],
            pa.string(): COLUMN.original_strategies[1],
            pa.float32(): COLUMN.original_strategies[2],
        }.get(kind, COLUMN.original_strategies[3])
        choice = data.draw(st.integers(0, 39))
        if choice == 0:
            continue
        values = data.draw(COLUMN if choice == 1 else fitting)
        columns[name] = pa.array(values)
    if not columns:
        return
    try:
        found = format_2.score(pa.RecordBatch.from_pydict(columns))
    except EmbedcompError as error:
        assert str(error)
        return
    assert found.shape == (3,) and np.isfinite(found).all()
    # each row alone has the same score, bit for bit
    alone = [
        format_2.score(pa.RecordBatch.from_pydict({n: c.slice(i, 1) for n, c in columns.items()}))
        for i in range(3)
    ]
    assert np.array_equal(np.concatenate(alone), found)


@pytest.fixture(scope="module")
def format_2() -> embedcomp.Scorer:
    return embedcomp.Scorer.open(Path(__file__).parent.parent / "data/format_2")
