"""The engine reads raw columns as `Features.encode` does: ids, lists, nulls and dense numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedcomp.artifact.source import ModelSource
from embedcomp.engine.prepare import columns_of
from embedcomp.engine.requests import Requests, pointer
from embedcomp.errors import BadRequest
from embedcomp.kernels import native
from embedcomp.log.features import DenseFeature, Features, IdFeature
from embedcomp.log.vocabulary import Vocabulary
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.scorer.by_torch import in_memory

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not built")

KNOWN = 3_000  # ids of a column
WORDS = ["", "a", "Zürich", "上海", "😀", *(f"id {i}" for i in range(KNOWN))]


def _numbers(seed: int) -> Vocabulary:
    drawn = np.unique(np.random.default_rng(seed).integers(-(2**62), 2**62, KNOWN // 2))
    values = np.concatenate([np.arange(KNOWN // 2), drawn])
    return Vocabulary(pa.array(values), np.ones(len(values) + 2, np.int64))


def _strings() -> Vocabulary:
    return Vocabulary(pa.array(WORDS), np.ones(len(WORDS) + 2, np.int64))


def _row_numbers() -> Vocabulary:
    return Vocabulary(pa.array([], pa.int64()), np.ones(KNOWN + 2, np.int64), dense_ids=True)


IDS = (
    IdFeature("user", "user", False, _strings()),
    IdFeature("clicked", "user", True, _numbers(0)),
    IdFeature("item", "item", False, _numbers(1)),
    IdFeature("row", "item", False, _row_numbers()),
    IdFeature("tags", "item", True, _strings()),
    IdFeature("none", "context", True, _row_numbers()),
)
DENSE = (
    DenseFeature("age", "user", "none", 30.5, 12.0),
    DenseFeature("price", "item", "log1p", 1.5, 0.3),
    DenseFeature("hour", "context", "log1p", 0.0, 1.0),
)
SHAPES = {
    "all": Features(IDS, DENSE),
    "no dense": Features(IDS, ()),
    "no lists": Features(tuple(f for f in IDS if not f.multi_valued), DENSE),
    "no user": Features(tuple(f for f in IDS if f.side != "user"), DENSE[1:]),
    "one": Features(IDS[2:3], ()),
}


def _backend(features: Features, threads: int = 1) -> ByEngine:
    found = in_memory(ModelSource(model="dcnv2").build(features, 1).eval(), features, threads)
    assert isinstance(found, ByEngine)
    return found


@pytest.fixture(scope="module", params=SHAPES)
def scored(request: pytest.FixtureRequest) -> tuple[Features, ByEngine]:
    return SHAPES[request.param], _backend(SHAPES[request.param])


def _column(feature: IdFeature | DenseFeature, rows: int, random: np.random.Generator) -> pa.Array:
    """Known ids and others, with and without nulls; of lists, also those in them."""
    nulls = random.random() < 0.5
    if isinstance(feature, DenseFeature):
        kind = random.choice(["float32", "float64", "int64", "int32"])
        values = (random.standard_normal(rows) * 10 ** random.integers(0, 6)).astype(kind)
        return pa.array(values, mask=random.random(rows) < 0.2 * nulls)
    if not feature.multi_valued:
        return _ids(feature.vocabulary, rows, nulls, random)
    lengths = random.integers(0, 5, rows)
    values = _ids(feature.vocabulary, int(lengths.sum()), nulls, random)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = pa.array(random.random(rows) < 0.2 * nulls) if nulls else None
    # a list that is null may hold values all the same, which nobody reads
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)


def _ids(of: Vocabulary, number: int, nulls: bool, random: np.random.Generator) -> pa.Array:
    mask = random.random(number) < 0.2 * nulls
    if of.type == pa.string():
        drawn = random.choice(np.array([*WORDS, "unknown", "\x00", "é"], object), number)
        return pa.array(drawn, pa.string(), mask=mask)
    known = random.choice(of.values.to_numpy() if len(of.values) else np.arange(KNOWN), number)
    unknown = random.integers(-(2**63), 2**63 - 1, number)
    return pa.array(np.where(random.random(number) < 0.7, known, unknown), mask=mask)


def _batches(
    features: Features, rows: int, random: np.random.Generator
) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    """Items and a user, in one of the ways in which features may be given."""
    every = (*features.ids, *features.dense)
    of_user = {
        "nothing": lambda f: False,
        "theirs": lambda f: f.side == "user",
        "any": lambda f: random.random() < 0.5 and f.name not in ("item", "row"),
    }[random.choice(["nothing", "theirs", "any"])]
    items: dict[str, pa.Array] = {"no feature": pa.array(["x"] * (rows + 3))}
    user: dict[str, pa.Array] = {}
    for feature in random.permutation(np.array(every, object)):
        theirs = of_user(feature)
        column = _column(feature, (1 if theirs else rows) + 3, random)
        (user if theirs else items)[feature.name] = column
    both = (pa.RecordBatch.from_pydict(columns).slice(2) for columns in (items, user))
    given, theirs = (batch.slice(0, len(batch) - 1) for batch in both)  # buffers begin before it
    return given, theirs if user else None


def _encoded(requests: Requests, items: pa.RecordBatch, user: pa.RecordBatch | None) -> Any:
    """Ids, lengths and dense numbers as the engine makes them."""
    read = requests.read(items, user)
    assert read is not None
    found = read.encoded

    def array(at: int, kind: Any, size: int) -> np.ndarray:
        return np.ctypeslib.as_array((kind * size).from_address(at)).copy() if size else np.empty(0)

    features = requests.features
    keys = len(features.ids)
    bags = found.rows * keys
    if found.shares_user:
        bags = found.rows * len(features.item.ids) + len(features.user.ids)
    return (
        bool(found.shares_user),
        array(found.ids, ctypes.c_int64, found.total),
        array(found.lengths, ctypes.c_int64, bags),
        array(found.dense, ctypes.c_float, found.rows * len(features.dense)),
    )


def _wanted(features: Features, columns: Mapping[str, pa.Array], rows: int) -> tuple[Any, Any]:
    """The same as `Features.encode` has it."""
    found = features.encode(columns, rows)
    ids = [found.single.T.reshape(-1), *(bag.values for bag in found.bags)]
    lengths = [np.ones(found.single.size, int), *(np.diff(bag.offsets) for bag in found.bags)]
    return np.concatenate(ids), np.concatenate(lengths)


@pytest.mark.slow
def test_raw_columns_become_the_same_rows(scored: tuple[Features, ByEngine]) -> None:
    features, backend = scored
    requests, ids, shared = backend.requests(features), 0, 0
    for seed in range(120):
        random = np.random.default_rng(seed)
        rows = int(random.choice([1, 2, 64, 700]))
        items, user = _batches(features, rows, random)
        shares, found_ids, found_lengths, dense = _encoded(requests, items, user)
        columns, theirs = columns_of(items, user)
        everything = {**columns, **theirs}
        wanted = [_wanted(features, everything, rows)]
        if shares:
            parts = Features(features.item.ids, ()), Features(features.user.ids, ())
            wanted = [_wanted(parts[0], columns, rows), _wanted(parts[1], theirs, 1)]
        assert np.array_equal(found_ids, np.concatenate([w[0] for w in wanted]))
        assert np.array_equal(found_lengths, np.concatenate([w[1] for w in wanted]))
        assert np.array_equal(dense, features.encode_dense(everything, rows).reshape(-1))
        ids, shared = ids + len(found_ids), shared + shares
        quick = requests.score(items, user)
        assert quick is not None
        assert np.array_equal(quick, backend.ready_columns(features, items, user)())
    assert ids > 20_000 and (shared > 20) == bool(features.user.names)


@pytest.mark.slow
def test_several_threads_give_the_scores_of_one() -> None:
    features = SHAPES["all"]
    one, several = _backend(features), _backend(features, 3)
    items, user = _batches(features, 1_000, np.random.default_rng(0))
    wanted = one.requests(features).score(items, user)
    found = several.requests(features).score(items, user)
    assert wanted is not None and len(wanted) == 1_000 and np.array_equal(wanted, found)


class _Later:
    """A batch from its second row on, as an Arrow struct whose columns begin earlier."""

    def __init__(self, batch: pa.RecordBatch):
        self.schema, self.num_rows, self._batch = batch.schema, batch.num_rows - 1, batch

    def __arrow_c_array__(self) -> tuple[object, object]:
        capsules: tuple[object, object] = self._batch.__arrow_c_array__()
        length, _, offset = (ctypes.c_int64 * 3).from_address(pointer(capsules[1], b"arrow_array"))
        changed = length - 1, -1, offset + 1
        ctypes.memmove(pointer(capsules[1], b"arrow_array"), (ctypes.c_int64 * 3)(*changed), 24)
        return capsules


def test_a_batch_may_begin_within_its_columns() -> None:
    features = SHAPES["all"]
    requests = _backend(features).requests(features)
    random = np.random.default_rng(4)
    every = (*features.ids, *features.dense)
    items = pa.RecordBatch.from_pydict({f.name: _column(f, 40, random) for f in every})
    later: Any = _Later(items)
    found, wanted = requests.score(later, None), requests.score(items, None)
    assert found is not None and wanted is not None and np.array_equal(found, wanted[1:])


def _without(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    return batch.drop_columns([name])


def _with(batch: pa.RecordBatch, **columns: pa.Array) -> pa.RecordBatch:
    held = dict(zip(batch.schema.names, batch.columns, strict=True))
    return pa.RecordBatch.from_pydict(held | columns)


def _odd() -> dict[str, tuple[Any, Any, str]]:
    """Requests that the engine leaves alone, and what is said of them; empty: they are scored."""
    features = SHAPES["all"]
    random = np.random.default_rng(3)
    while True:
        items, user = _batches(features, 4, random)
        if user is not None and set(user.schema.names) == set(features.user.names):
            break
    price = pa.array([1.0, np.inf, 2.0, 3.0])
    dictionary = items["item"].dictionary_encode()
    return {
        "missing": (_without(items, "tags"), user, "'tags': is missing"),
        "twice": (_with(items, user=pa.array(["a"] * 4)), user, "for the user and for the items"),
        "no user": (items, None, "is missing"),
        "two users": (items, pa.RecordBatch.from_pydict({"user": ["a", "b"]}), "2 user rows"),
        "type": (_with(items, item=pa.array(["a"] * 4)), user, "holds string values"),
        "list": (_with(items, tags=pa.array(["a"] * 4)), user, "must hold lists"),
        "dictionary": (_with(items, item=dictionary), user, "holds dictionary"),
        "infinite": (_with(items, price=price), user, "infinite"),
        "untyped nulls": (_with(items, tags=pa.nulls(4)), user, ""),
        "bytes": (_with(items, price=pa.array([1, 2, 3, 4], pa.int8())), user, ""),
        "no rows": (items.slice(0, 0), user, ""),
    }


@pytest.mark.parametrize("name", _odd())
def test_what_is_out_of_the_ordinary_is_left_to_python(name: str) -> None:
    items, user, said = _odd()[name]
    features = SHAPES["all"]
    backend = _backend(features)
    try:
        assert backend.requests(features).score(items, user) is None
    except BadRequest:
        pytest.fail("the engine says nothing of it")
    if not said:
        assert len(backend.score_columns(features, items, user)) == items.num_rows
        return
    with pytest.raises(BadRequest, match=said):
        backend.score_columns(features, items, user)
