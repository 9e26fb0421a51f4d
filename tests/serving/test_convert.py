from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcomp.errors import BadRequest
from embedcomp.serving.convert import from_column, from_request, to_column, to_request
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

UNTIMED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
TYPES = {
    pa.int64(): INT64,
    pa.string(): st.text(),
    pa.float32(): FLOAT32,
    pa.list_(pa.int64()): st.lists(st.none() | INT64, max_size=4),
    pa.list_(pa.string()): st.lists(st.none() | st.text(), max_size=4),
}


def ids(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def places(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


@st.composite
def arrays(draw: st.DrawFn) -> pa.Array:
    kind = draw(st.sampled_from(list(TYPES)))
    return pa.array(draw(st.lists(st.none() | TYPES[kind], max_size=20)), kind)


@pytest.mark.slow
@UNTIMED
@given(arrays(), st.data())
def test_every_array_comes_back_as_it_was_sent_and_so_does_a_slice_of_it(
    array: pa.Array, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(array)))
    for sent in (array, array.slice(start, data.draw(st.integers(0, 20)))):
        back = from_column("x", to_column("x", sent))
        back.validate(full=True)
        assert back.equals(sent)


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (pa.array([1, 2], pa.int8()), pa.array([1, 2])),
        (pa.array([True, None]), pa.array([1, None])),
        (pa.array([0.5], pa.float64()), pa.array([0.5], pa.float32())),
        (pa.array(["a", None]).dictionary_encode(), pa.array(["a", None])),
        (pa.array(["a"], pa.large_string()), pa.array(["a"])),
        (pa.array([[1]], pa.list_(pa.int32())), pa.array([[1]])),
        (pa.array([None, None]), pa.array([None, None], pa.int64())),
        (pa.array([[], None]), pa.array([[], None], pa.list_(pa.int64()))),
    ],
    ids=lambda array: str(array.type),
)
def test_other_types_travel_as_the_nearest_of_the_wire(sent: pa.Array, received: pa.Array) -> None:
    assert from_column("x", to_column("x", sent)).equals(received)


def test_nan_is_sent_as_it_is() -> None:
    back = from_column("x", to_column("x", pa.array([float("nan")], pa.float32())))
    assert back.null_count == 0 and np.isnan(back[0].as_py())


@pytest.mark.parametrize(
    "array", [pa.array([{"a": 1}]), pa.array([[0.5]]), pa.array([2**64 - 1], pa.uint64())]
)
def test_what_cannot_be_sent_is_refused_by_name(array: pa.Array) -> None:
    with pytest.raises(BadRequest, match="feature 'x'"):
        to_column("x", array)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (wire.Column(), "has no values; set ids, strings or numbers"),
        (wire.Column(ids=b"1234567"), "has 7 bytes in ids, which is no multiple of 8"),
        (wire.Column(numbers=b"12345"), "has 5 bytes in numbers, which is no multiple of 4"),
        (wire.Column(ids=ids(1), lengths=b"123"), "has 3 bytes in lengths"),
        (wire.Column(ids=ids(1), lengths=places(2)), "lengths that add up to 2, but 1 values"),
        (wire.Column(ids=ids(1), lengths=places(2, -1)), "has a length of -1"),
        (wire.Column(ids=b"", lengths=places(*[2**31 - 1] * 3)), "add up to 6,442,450,941"),
        (wire.Column(ids=ids(1), null_rows=places(1)), "has 1 in null_rows, but places are 0 to 0"),
        (wire.Column(ids=ids(1), null_rows=places(-1)), "has -1 in null_rows"),
        (wire.Column(ids=ids(1), null_rows=b"1"), "has 1 bytes in null_rows"),
        (
            wire.Column(ids=ids(1), lengths=places(1), null_values=places(1)),
            "has 1 in null_values",
        ),
        (wire.Column(ids=ids(1), null_values=places(0)), "has null_values but no lengths"),
        (
            wire.Column(ids=ids(1), lengths=places(1), null_rows=places(0)),
            "has 1 values in row 0, which is null",
        ),
    ],
)
def test_a_column_that_does_not_hold_together_is_refused_by_name(
    column: wire.Column, message: str
) -> None:
    with pytest.raises(BadRequest, match=f"feature 'genres': .*{message}"):
        from_column("genres", column)


def test_columns_of_different_heights_are_refused_by_name() -> None:
    request = to_request(pa.RecordBatch.from_pydict({"a": [1, 2]}))
    request.items["b"].ids = ids(1, 2, 3)
    with pytest.raises(BadRequest, match="feature 'b': has 3 rows, but 'a' has 2"):
        from_request(request, ["a", "b"])


def test_a_user_has_one_row() -> None:
    two = pa.RecordBatch.from_pydict({"b": [1, 2]})
    request = to_request(pa.RecordBatch.from_pydict({"a": [1, 2]}), two)
    with pytest.raises(BadRequest, match="feature 'b': has 2 user rows"):
        from_request(request, ["a", "b"])


def test_a_feature_is_given_once() -> None:
    one = pa.RecordBatch.from_pydict({"a": [1]})
    with pytest.raises(BadRequest, match="feature 'a': is given both"):
        from_request(to_request(one, one), ["a"])


def test_candidates_cannot_be_counted_without_items() -> None:
    request = wire.PredictRequest()
    request.user["a"].ids = ids(1)
    with pytest.raises(BadRequest, match="feature 'a': is not among the items"):
        from_request(request, ["a"])


def test_columns_that_are_no_features_are_not_looked_at() -> None:
    request = to_request(pa.RecordBatch.from_pydict({"a": [1]}))
    request.items["note"].ids = b"damaged"
    items, user = from_request(request, ["a", "b"])
    assert items.schema.names == ["a"] and user is None


SMALL_INTS = st.lists(st.integers(-2, 5), max_size=6).map(lambda values: places(*values))
RAW = st.binary(max_size=40) | SMALL_INTS


@st.composite
def wire_columns(draw: st.DrawFn) -> wire.Column:
    column = wire.Column(null_rows=draw(RAW), null_values=draw(RAW))
    if draw(st.booleans()):
        column.lengths = draw(RAW)
    match draw(st.integers(0, 3)):
        case 1:
            column.ids = draw(RAW)
        case 2:
            column.numbers = draw(RAW)
        case 3:
            column.strings.values.extend(draw(st.lists(st.text(), max_size=5)))
    return column


@pytest.mark.slow
@UNTIMED
@given(
    st.dictionaries(st.sampled_from("abc"), wire_columns()),
    st.dictionaries(st.sampled_from("abc"), wire_columns()),
)
def test_any_request_is_either_whole_or_refused_by_name(
    items: dict[str, wire.Column], user: dict[str, wire.Column]
) -> None:
    try:
        batches = from_request(wire.PredictRequest(items=items, user=user), ["a", "b", "c"])
    except BadRequest as error:
        assert error.feature in ("a", "b", "c")
        return
    for batch in batches:
        if batch is not None:
            batch.validate(full=True)
