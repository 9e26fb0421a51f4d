"""One version of a model as doors see it: scores of columns that have names."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pyarrow as pa

from embedcomp.engine.engine import Ready
from embedcomp.engine.prepare import Part, made_up
from embedcomp.engine.requests import Read
from embedcomp.errors import BadRequest
from embedcomp.serving.errors import Refused
from embedcomp.serving.settings import ServerSettings
from embedcomp.support.metrics import SCORES, by_score

if TYPE_CHECKING:
    from embedcomp.graph.graph import Leaf
    from embedcomp.scorer.scorer import Scorer

INT64, STRING, FLOAT32 = pa.int64(), pa.string(), pa.float32()
TOGETHER = 64  # calls whose scores are counted at a time, which takes a tenth of one by one
WARM_ROWS = 64  # that a version scores before it is served
WEIGHTS = ".weights"  # after a feature's name: a weight of each of its ids


@dataclass(frozen=True)
class Input:
    """What a model reads under a name.

    width: numbers of a row, where there may be several; None: there is one.
    """

    name: str
    type: pa.DataType  # of a number: int64 or string ids, or float32
    many: bool = False  # a list of them a row
    user: bool = False  # the same for all candidates of a request, as a rule
    rows: int = 0  # of its table; 0: it has none, or that is not known
    width: int | None = None


@dataclass(frozen=True)
class Whole:
    """A request that is scored at once, by itself: what the engine does not read."""

    rows: int
    score: Ready

    joins = False  # it is not scored together with others

    @property
    def left(self) -> int:
        """Rows that are not scored yet."""
        return self.rows

    @property
    def defaulted(self) -> int:
        """Ids whose rows could not be had."""
        return self.score.defaulted


Work = Read | Whole


class Counts:
    """What became of a version's calls, since it was opened; times in nanoseconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = self.rows = self.ns = self.queue_ns = 0
        self._by_score, self._score_sum = np.zeros(len(SCORES), np.int64), 0.0
        self._fresh: list[np.ndarray] = []  # scores that are in neither of them yet
        self.failed = self.failed_ns = 0
        self.last_ms = 0  # since 1970

    def add(self, scores: np.ndarray | None, ns: int, queue_ns: int) -> None:
        """Count a call and its scores; of None, one that failed.

        Args:
            ns: that it took; queue_ns: of which it waited for its turn.
        """
        with self._lock:
            self.last_ms = time.time_ns() // 1_000_000
            if scores is None:
                self.failed, self.failed_ns = self.failed + 1, self.failed_ns + ns
            else:
                self.calls, self.ns = self.calls + 1, self.ns + ns
                self.queue_ns += queue_ns
                self.rows += len(scores)
                self._fresh.append(scores)
                if len(self._fresh) == TOGETHER:
                    self._take_in()

    def scores(self) -> tuple[np.ndarray, float]:
        """Rows by their score, int64 [buckets of SCORES], and the sum of all scores."""
        with self._lock:
            self._take_in()
            return self._by_score.copy(), self._score_sum

    def _take_in(self) -> None:
        scores = np.concatenate([*self._fresh, np.empty(0, np.float32)])
        self._by_score += by_score(scores)
        self._score_sum += float(scores.sum(dtype=np.float64))
        self._fresh = []


class Served:
    """A scorer of raw columns, or of the inputs of a user's own model by their names.

    Inputs of the latter are called by the keys of their ids (KEY.weights are weights of those), and
    `dense` or `ids` where the model has one tensor of numbers or of ids; else by their places in
    the example that it was saved with.
    """

    def __init__(self, scorer: Scorer, settings: ServerSettings):
        self.scorer, self.settings = scorer, settings
        self.name, self.version = scorer.name, scorer.version
        self.counts = Counts()

    @cached_property
    def inputs(self) -> list[Input]:
        """What it reads, in the model's order: ids, then dense numbers."""
        if not self.scorer.has_features:
            return [one for leaf in self._leaves for one in self._inputs_of(leaf)]
        features = self.scorer.features
        ids = [
            Input(f.name, f.vocabulary.type, f.multi_valued, f.side == "user", f.rows)
            for f in features.ids
        ]
        return ids + [Input(f.name, FLOAT32, user=f.side == "user") for f in features.dense]

    @cached_property
    def names(self) -> list[str]:
        return [one.name for one in self.inputs]

    def warm_up(self) -> None:
        """Score rows without any values, so that the first call finds everything in its place."""
        for rows in (1, min(WARM_ROWS, self.settings.max_rows)):
            if not self.scorer.has_features:
                assert self.scorer.alone is not None
                self.scorer.score_parts(made_up(self.scorer.alone, None, rows, seed=0))
                continue
            types = {one.name: pa.list_(one.type) if one.many else one.type for one in self.inputs}
            nulls = {name: pa.nulls(rows, kind) for name, kind in types.items()}
            self.scorer.score(pa.RecordBatch.from_pydict(nulls))
        if self.scorer.seen is not None:
            self.scorer.seen[:] = 0  # they came from nobody

    def read_message(self, message: bytes) -> Read | None:
        """A PredictRequest's bytes, read the quickest way; None: they have to be parsed."""
        if not self.scorer.has_features:
            return None
        limits = self.settings
        return self.scorer.read_message(message, max_rows=limits.max_rows, max_ids=limits.max_ids)

    def read(self, items: pa.RecordBatch, user: pa.RecordBatch | None = None) -> Work:
        """Columns, to be scored.

        Args:
            items: a row a candidate; user: one row, which holds for all of them.

        Raises:
            BadRequest: a column does not fit its feature, or there is none.
            Refused: there are more candidates than a call may have.
        """
        self._check_size(items, user)
        if self.scorer.has_features:
            read = self.scorer.read(items, user)
            return read or Whole(items.num_rows, self.scorer.ready(items, user))
        columns = dict(zip(items.schema.names, items.columns, strict=True))
        if user is not None:
            places = pa.array(np.zeros(items.num_rows, np.int32))
            theirs = zip(user.schema.names, user.columns, strict=True)
            columns |= {name: column.take(places) for name, column in theirs}
        parts = [self._part(leaf, columns) for leaf in self._leaves]
        return self.read_parts(parts, items.num_rows)

    def read_parts(self, parts: list[Part], rows: int) -> Whole:
        """The inputs of a user's own model, to be scored."""
        return Whole(rows, self.scorer.ready_parts(parts))

    def score_part(self, work: Work, rows: int) -> np.ndarray | None:
        """Score the next rows of a request, or all of them where they cannot be told apart.

        Returns:
            Probabilities float32 [N] of all its rows, little-endian; None: some are not scored yet.

        Raises:
            BadRequest, BadId: a number or an id is not what the model takes.
        """
        if isinstance(work, Whole):
            return work.score().astype("<f4", copy=False)
        self.scorer.score_part(work, rows)
        return work.scores if work.done == work.rows else None

    def check_rows(self, rows: int) -> None:
        """Raises Refused where a call has more candidates than it may."""
        if rows > self.settings.max_rows:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the request has {rows:,} candidates, but this server takes "
                f"{self.settings.max_rows:,} in one call; send them in several",
            )

    def _check_size(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> None:
        self.check_rows(items.num_rows)
        for batch, times in ((items, 1), (user, items.num_rows)):
            for name, column in (
                zip(batch.schema.names, batch.columns, strict=True) if batch else ()
            ):
                ids = times * len(column.flatten()) if pa.types.is_list(column.type) else 0
                if ids > self.settings.max_ids:
                    raise BadRequest(
                        name,
                        f"has {ids:,} ids over all candidates, but this server takes "
                        f"{self.settings.max_ids:,}; send fewer candidates or shorter lists",
                    )

    # A user's own model.

    @cached_property
    def _leaves(self) -> list[Leaf]:
        assert self.scorer.alone is not None, "it was saved with its inputs"
        return [leaf for leaf in self.scorer.alone.leaves if leaf.kind != "other"]

    def leaves_of(self, kind: str) -> list[Leaf]:
        """Those of the model's inputs that are of a kind (graph/graph.py)."""
        return [leaf for leaf in self._leaves if leaf.kind == kind]

    def _called(self, leaf: Leaf) -> str:
        return leaf.kind if len(self.leaves_of(leaf.kind)) == 1 else leaf.name

    def _inputs_of(self, leaf: Leaf) -> list[Input]:
        if leaf.kind != "jagged":
            kind = FLOAT32 if leaf.kind == "dense" else INT64
            return [Input(self._called(leaf), kind, width=leaf.width)]
        ids = [Input(key, INT64, many=True) for key in leaf.keys]
        weights = [Input(f"{key}{WEIGHTS}", FLOAT32, many=True) for key in leaf.keys]
        return ids + (weights if leaf.weighted else [])

    def _part(self, leaf: Leaf, columns: Mapping[str, pa.Array]) -> Part:
        if leaf.kind != "jagged":
            kind = FLOAT32 if leaf.kind == "dense" else INT64
            return Part(leaf, _matrix(self._called(leaf), columns, leaf.width, kind))
        ids = [_list(key, columns, INT64) for key in leaf.keys]
        values, lengths = (np.concatenate(of) for of in zip(*ids, strict=True))
        if not leaf.weighted:
            return Part(leaf, values, lengths)
        weights = [_list(f"{key}{WEIGHTS}", columns, FLOAT32) for key in leaf.keys]
        for key, (_, one), (_, other) in zip(leaf.keys, ids, weights, strict=True):
            if not np.array_equal(one, other):
                raise BadRequest(f"{key}{WEIGHTS}", "has not as many weights as there are ids")
        return Part(leaf, values, lengths, np.concatenate([values for values, _ in weights]))


def _given(name: str, columns: Mapping[str, pa.Array]) -> pa.Array:
    if name not in columns:
        raise BadRequest(name, "is missing; the model needs all of its inputs")
    return columns[name]


def _numbers(name: str, column: pa.Array, kind: pa.DataType) -> np.ndarray:
    """Values without nulls, as the model takes them."""
    if column.type != kind or column.null_count:
        nulls = " with nulls" if column.null_count else ""
        raise BadRequest(name, f"holds {column.type} values{nulls}, but must hold {kind}")
    return np.ascontiguousarray(column.to_numpy())


def _list(
    name: str, columns: Mapping[str, pa.Array], kind: pa.DataType
) -> tuple[np.ndarray, np.ndarray]:
    """Values, and the lengths of rows, int64; a column without lists has a value a row."""
    column = _given(name, columns)
    if not pa.types.is_list(column.type):
        return _numbers(name, column, kind), np.ones(len(column), np.int64)
    if column.null_count:
        raise BadRequest(name, "holds a null, which this model has no row for; send an empty list")
    lengths = column.value_lengths().to_numpy().astype(np.int64)
    return _numbers(name, column.flatten(), kind), lengths


def _matrix(
    name: str, columns: Mapping[str, pa.Array], width: int | None, kind: pa.DataType
) -> np.ndarray:
    """Numbers [B, width] of lists of as many, or of a column of single ones."""
    values, lengths = _list(name, columns, kind)
    wanted = 1 if width is None else width
    if (lengths != wanted).any():
        row = int(np.flatnonzero(lengths != wanted)[0])
        raise BadRequest(name, f"has {lengths[row]} numbers in row {row:,}, but must have {wanted}")
    return values.reshape(len(lengths), wanted)
