"""Requests that the engine reads from the wire's bytes are scored as those read in Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from toy_scorer import FEATURES

from embedcomp.artifact.source import ModelSource
from embedcomp.engine.requests import Taken
from embedcomp.errors import BadRequest
from embedcomp.kernels import native
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.scorer.by_torch import in_memory
from embedcomp.serving.convert import from_request, to_request
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire
from tests.serving.mutations import of_bytes, of_fields

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not built")

MAX_ROWS, MAX_IDS = 50, 400
MUTATED = 3_000
TAKEN = Taken(b"toy", 7, MAX_ROWS, MAX_IDS)
WORDS = np.array(["Zürich", "Basel", "a", "b", "", "nowhere", "上海", "\x00"], object)


@dataclass(frozen=True)
class Both:
    """One model, by the bytes and by their columns."""

    backend: ByEngine

    def quickly(self, message: bytes) -> np.ndarray | None:
        requests = self.backend.requests(FEATURES)
        read = requests.read_message(message, TAKEN)
        if read is None:
            return None
        while read.left:
            requests.score_part(read, 7)
        return read.scores

    def slowly(self, message: bytes) -> np.ndarray:
        request = wire.PredictRequest.FromString(message)
        items, user = from_request(request, FEATURES.names)
        assert request.model in ("", "toy") and request.version in (0, 7)
        assert items.num_rows <= MAX_ROWS
        return self.backend.ready_columns(FEATURES, items, user)()


@pytest.fixture(scope="module")
def both() -> Both:
    backend = in_memory(ModelSource(model="dcnv2").build(FEATURES, 1).eval(), FEATURES)
    assert isinstance(backend, ByEngine)
    return Both(backend)


def _column(name: str, rows: int, random: np.random.Generator) -> pa.Array:
    nulls = 0.2 * (random.random() < 0.5)

    def values(number: int) -> pa.Array:
        mask = random.random(number) < nulls
        if name in ("city", "tags"):
            return pa.array(random.choice(WORDS, number), pa.string(), mask=mask)
        if name == "age":
            return pa.array(random.standard_normal(number).astype(np.float32), mask=mask)
        return pa.array(random.integers(0, 40, number), mask=mask)

    if name not in ("genres", "tags"):
        return values(rows)
    lengths = random.integers(0, 4, rows)
    empty = random.random(rows) < nulls
    lengths[empty] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values(int(lengths.sum())), mask=pa.array(empty))


def _message(random: np.random.Generator) -> bytes:
    """A request, in one of the ways in which it may name its columns and its model."""
    rows, shared = int(random.integers(1, 12)), random.choice(["", "theirs", "any"])
    columns: dict[bool, dict[str, pa.Array]] = {False: {}, True: {}}
    for name in random.permutation(FEATURES.names):
        user = shared == "theirs" and name in FEATURES.user.names
        user |= shared == "any" and name != "genres" and random.random() < 0.5
        columns[bool(user)][name] = _column(name, 1 if user else rows, random)
    columns[False]["other"] = pa.array(["x"] * rows)
    items, user = (pa.RecordBatch.from_pydict(columns[side]) for side in (False, True))
    model, version = str(random.choice(["", "toy"])), int(random.choice([0, 7]))
    request = to_request(items, user if columns[True] else None, model, version)
    return request.SerializeToString()


@pytest.mark.slow
def test_the_engine_reads_what_a_client_sends(both: Both) -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        message = _message(random)
        found = both.quickly(message)
        assert found is not None and np.array_equal(found, both.slowly(message))


@pytest.mark.slow
@pytest.mark.parametrize("mutated", [of_bytes, of_fields])
def test_the_engine_reads_nothing_that_python_would_refuse(
    mutated: Callable[..., bytes], both: Both
) -> None:
    numbers, draw = np.random.default_rng(1), Random(1)
    read = 0
    for _ in range(MUTATED):
        message = mutated(_message(numbers), [_message(numbers)], draw)
        try:
            found = both.quickly(message)
        except BadRequest as error:  # a number so large that its row has no score
            with pytest.raises(BadRequest, match=str(error)):
                both.slowly(message)
            continue
        if found is None:
            continue
        read += 1
        try:
            wanted = both.slowly(message)
        except (BadRequest, DecodeError, AssertionError) as error:
            pytest.fail(f"{message!r} was scored, but {error!r}")
        assert np.array_equal(found, wanted), message
    assert MUTATED / 100 < read < MUTATED / 2


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FEATURES.names[1:2], "other"])
def test_a_thread_keeps_little_of_a_message_of_many_strings(both: Both, name: str) -> None:
    if not Path("/proc/self/statm").exists() or "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("memory cannot be looked at here")
    texts = wire.Column(strings=wire.Strings(values=[""] * 5_000_000))
    message = wire.PredictRequest(items={name: texts}).SerializeToString()
    del texts
    before = _resident()
    assert both.quickly(message) is None
    assert _resident() - before < 40 << 20, "16 bytes of each were kept"


def _request(**changes: wire.Column) -> wire.PredictRequest:
    random = np.random.default_rng(2)
    columns = {name: _column(name, 3, random) for name in FEATURES.names}
    request = to_request(pa.RecordBatch.from_pydict(columns))
    for name, column in changes.items():
        request.items[name].CopyFrom(column)
    return request


def _ids(*values: int, **others: bytes) -> wire.Column:
    return wire.Column(ids=np.array(values, "<i8").tobytes(), **others)


def _ints(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(_request(user_id=_ids(1, 2)), id="fewer rows"),
        pytest.param(_request(user_id=wire.Column(ids=b"1234567")), id="half a number"),
        pytest.param(_request(user_id=_ids(1, 2, 3, null_rows=_ints(3))), id="null beyond"),
        pytest.param(_request(user_id=_ids(1, 2, 3, null_rows=_ints(-1))), id="null before"),
        pytest.param(_request(user_id=_ids(1, 2, 3, null_rows=b"123")), id="half a place"),
        pytest.param(_request(user_id=_ids(1, 2, 3, lengths=_ints(1, 1, 1))), id="a list"),
        pytest.param(_request(genres=_ids(1, 2, 3)), id="no list"),
        pytest.param(_request(genres=_ids(1, 2, 3, lengths=_ints(3, -1, 1))), id="negative"),
        pytest.param(_request(genres=_ids(1, 2, 3, lengths=_ints(1, 1, 2))), id="too long"),
        pytest.param(_request(genres=_ids(1, 2, 3, lengths=_ints(1, 1, 0))), id="too short"),
        pytest.param(_request(genres=_ids(1, lengths=_ints(HUGE, HUGE, 3))), id="overflow"),
        pytest.param(
            _request(genres=_ids(1, lengths=_ints(1, 0, 0), null_rows=_ints(0))), id="held"
        ),
        pytest.param(
            _request(genres=_ids(1, lengths=_ints(1, 0, 0), null_values=_ints(1))), id="v"
        ),
        pytest.param(_request(age=wire.Column(numbers=b"\0\0\x80\x7f" * 3)), id="infinite"),
        pytest.param(_request(city=_ids(1, 2, 3)), id="numbers"),
        pytest.param(_request(city=wire.Column()), id="nothing"),
        pytest.param(wire.PredictRequest(), id="empty"),
        pytest.param(wire.PredictRequest(model="other"), id="another model"),
    ],
)
def test_what_is_wrong_is_left_to_python(both: Both, request_: wire.PredictRequest) -> None:
    assert both.quickly(_request().SerializeToString()) is not None
    message = request_.SerializeToString()
    assert both.quickly(message) is None
    with pytest.raises((BadRequest, AssertionError)):
        both.slowly(message)


def test_more_than_a_call_may_have_is_left_to_python(both: Both) -> None:
    random = np.random.default_rng(3)

    def asked(rows: int, tags: int) -> bytes:
        columns = {name: _column(name, rows, random) for name in FEATURES.names}
        user = {"tags": pa.array([["a"] * tags])}
        del columns["tags"]
        batches = (pa.RecordBatch.from_pydict(of) for of in (columns, user))
        return to_request(*batches).SerializeToString()

    assert both.quickly(asked(MAX_ROWS, MAX_IDS // MAX_ROWS)) is not None
    assert both.quickly(asked(MAX_ROWS + 1, 1)) is None
    assert both.quickly(asked(MAX_ROWS, MAX_IDS // MAX_ROWS + 1)) is None


def test_another_model_or_version_is_left_to_python(both: Both) -> None:
    request = _request()
    for model, version, read in (("toy", 7, True), ("toys", 7, False), ("toy", 8, False)):
        request.model, request.version = model, version
        assert (both.quickly(request.SerializeToString()) is not None) == read


@pytest.mark.parametrize(
    "text",
    [
        *(b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf"),
        *(b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"abcdefgh\xff", b"\xe2\x28\xa1"),
    ],
)
def test_strings_that_are_not_utf8_are_left_to_python(both: Both, text: bytes) -> None:
    mark = "?" * len(text)
    message = _request(city=wire.Column(strings=wire.Strings(values=[mark] * 3)))
    whole = message.SerializeToString()
    assert both.quickly(whole) is not None and whole.count(mark.encode()) == 3
    broken = whole.replace(mark.encode(), text)
    assert both.quickly(broken) is None
    with pytest.raises(DecodeError):
        both.slowly(broken)
