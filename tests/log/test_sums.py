"""What is made of a log's rows and columns, against plain Python."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcomp.errors import BadRequest
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import DenseFeature, Features
from embedcomp.log.profile import RARE, profile
from embedcomp.log.rows import Bag, Rows
from tests.conftest import WriteLog

lists = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=8)


def bag(values: list[list[int]]) -> Bag:
    offsets = np.cumsum([0, *map(len, values)])
    return Bag(offsets, np.array([x for one in values for x in one], np.int32))


def lists_of(found: Bag) -> list[list[int]]:
    ends = found.offsets.tolist()
    return [found.values[a:b].tolist() for a, b in pairwise(ends)]


@given(lists, st.data())
@settings(deadline=None)
def test_bags_are_taken_cut_and_joined_as_lists_are(
    values: list[list[int]], data: st.DataObject
) -> None:
    n = len(values)
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=10))
    start, end = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    made = bag(values)
    assert lists_of(made) == values
    assert lists_of(made.take(np.array(places, np.int64))) == [values[i] for i in places]
    assert lists_of(made.part(start, end)) == values[start:end]
    assert lists_of(bag(values[:1]).repeat(3)) == 3 * values[:1]
    assert lists_of(Bag.concatenate([made, made.part(start, end), made])) == [
        *values,
        *values[start:end],
        *values,
    ]


@given(lists, st.data())
@settings(deadline=None)
def test_rows_stay_together_however_they_are_taken(
    values: list[list[int]], data: st.DataObject
) -> None:
    """Every column says which row it is of."""
    n = len(values)
    number = np.arange(n)
    dense = np.c_[number, -number].astype(np.float32)
    bags = (bag([[i] * len(one) for i, one in enumerate(values)]),)
    made = Rows(number.astype(np.float32), dense, number[:, None], bags)
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=10)), np.int64)
    half = n // 2
    joined = Rows.concatenate([made.part(half, n), made.part(0, half)])
    for found, wanted in ((made.take(places), places), (joined, np.r_[half:n, 0:half])):
        assert len(found) == len(wanted)
        assert found.labels.tolist() == found.dense[:, 0].tolist() == wanted.tolist()
        assert found.dense[:, 1].tolist() == (-wanted).tolist()
        assert found.single[:, 0].tolist() == wanted.tolist()
        assert lists_of(found.bags[0]) == [[i] * len(values[i]) for i in wanted]


def test_the_profile_counts_as_plain_python_does(synth_log: ClickLog) -> None:
    found = profile(synth_log, count(synth_log, synth_log.pieces("train")), "train")
    table = pq.read_table(f"{synth_log.path}/train.parquet")
    clicks = table[synth_log.schema.label].to_pylist()
    assert found["positive_rate"] == sum(clicks) / len(clicks)
    for name, column in found["categorical"].items():
        values = table[name].to_pylist()
        if pa.types.is_list(table[name].type):
            values = [x for one in values for x in ([None] if one is None else one)]
        counts = Counter(x for x in values if x is not None)
        total, falling = sum(counts.values()), sorted(counts.values(), reverse=True)
        assert column["distinct"] == len(counts)
        assert column["nulls"] == values.count(None)
        assert column["values_per_row"] == pytest.approx(len(values) / len(clicks))
        assert column["seen_once"] == falling.count(1)
        assert column["tail_mass"] == pytest.approx(sum(c for c in falling if c < RARE) / total)
        most = max(1, len(falling) // 100)
        assert column["top_percent_mass"] == pytest.approx(sum(falling[:most]) / total)


def test_dense_columns_are_described_after_their_transform(synth_log: ClickLog) -> None:
    found = profile(synth_log, count(synth_log, synth_log.pieces("train")), "train")["dense"]
    table = pq.read_table(f"{synth_log.path}/train.parquet")
    assert found
    for name, column in found.items():
        known = [x for x in table[name].to_pylist() if x is not None]
        assert column["nulls"] == table.num_rows - len(known)
        if column["transform"] == "log1p":
            known = [math.copysign(math.log1p(abs(x)), x) for x in known]
        assert column["mean"] == pytest.approx(np.mean(known), rel=1e-4)
        assert column["std"] == pytest.approx(np.std(known), rel=1e-4)


@pytest.mark.parametrize("prices", [[3.0] * 4, [None] * 3 + [2.0]])
def test_a_column_that_does_not_vary_is_zero_for_all(
    write_log: WriteLog, prices: list[float | None]
) -> None:
    log = ClickLog(str(write_log(price=prices)))
    features = Features.from_counts(log, count(log, log.pieces("train")), 1)
    assert features.dense[0].scale == 1.0
    (batch,) = log.read(log.pieces("train")[0])
    columns = {name: batch.column(name) for name in features.names}
    assert features.encode(columns, 4).dense.tolist() == [[0.0]] * 4


def test_a_request_is_standardised_as_the_log_was_and_null_is_the_mean() -> None:
    feature = DenseFeature("x", "item", "log1p", mean=0.5, scale=2.0)
    features = Features((), (feature,))
    found = features.encode_dense({"x": pa.array([math.e - 1, None, -(math.e - 1)])}, 3)
    assert found[:, 0].tolist() == pytest.approx([0.25, 0.0, -0.75])
    with pytest.raises(BadRequest, match="infinite"):
        features.encode_dense({"x": pa.array([math.inf])}, 1)


def test_users_features_and_items_features_are_all_there_are(synth_features: Features) -> None:
    user, item = synth_features.user, synth_features.item
    assert user.names and item.names
    assert sorted(user.names + item.names) == sorted(synth_features.names)
    assert {f.side for f in (*user.ids, *user.dense)} == {"user"}
    assert {f.side for f in (*item.ids, *item.dense)} == {"item"}
