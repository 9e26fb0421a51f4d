"""Runs a program on the inputs of a call; safe to use from several threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np

from embedcomp.engine.description import cores
from embedcomp.engine.program import Program
from embedcomp.errors import BadRequest, EmbedcompError
from embedcomp.graph.graph import Graph
from embedcomp.kernels import native
from embedcomp.kernels.native import address

NO_LIMIT = (1 << 63) - 1
THREAD_ROWS = 96  # that a thread should have at least; fewer are done before it has begun


class BadId(EmbedcompError):
    """An id that no row of its table has."""

    def __init__(self, feature: str, id: int, rows: int):
        known = f"rows 0 to {rows - 1:,}; map unknown ids to a row of the table before"
        self.plain = f"feature {feature!r} has an unknown id, but its table has {known}"
        super().__init__(f"feature {feature!r} has id {id:,}, but its table has {known}")


@dataclass(frozen=True, slots=True)
class Ids:
    """One input of ids, by the addresses of its arrays; `held` keeps them alive.

    ids: int64 [total]: of all features one after another, or a matrix [B, stride].
    lengths, offsets: int64 [features * B] and [features * B + 1] of a jagged input; one is enough.
    weights: float32, as ids, or 0.
    keys: the features of a jagged input, in their order.
    """

    ids: int
    total: int
    lengths: int = 0
    offsets: int = 0
    weights: int = 0
    stride: int = 0
    keys: tuple[str, ...] = ()
    held: object = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a graph reads for `rows` rows: its inputs of ids by leaf, its dense ones in their order.

    dense: address and width of float32 [B, width].
    """

    rows: int
    ids: Mapping[int, Ids]
    dense: Sequence[tuple[int, int]] = ()
    held: object = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that is read, and all that it reads is there: it gives click probabilities.

    defaulted: ids whose rows could not be had, so that the unknown one's stand for them.
    held: what the engine reads where it lies, which must be there until then.
    """

    score: Callable[[], np.ndarray]
    defaulted: int = 0
    held: object = None

    def __call__(self) -> np.ndarray:
        return self.score()


class Engine:
    """A program and the graph that it was made of.

    Args:
        user: the features that the program takes to be the user's.
        threads: that share the rows of a call; None: one a core.
        dense: inputs of the model itself; those beyond are given from outside.
    """

    def __init__(
        self,
        graph: Graph,
        program: Program,
        user: Collection[str] = (),
        threads: int | None = 1,
        dense: int = NO_LIMIT,
    ):
        self._library, self.dense = native.needed(), dense
        self._graph, self._program, self._user = graph, program, frozenset(user)
        self._leaves = tuple(sorted({feature.leaf for feature in graph.features}))
        self.program_at = ctypes.addressof(program.struct)
        self._layouts: dict[object, Layout] = {}
        self._calls = threading.local()
        self.threads = cores(threads)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "embedcomp-score")

    def score(
        self, items: Inputs, user: Inputs | None = None, *, logits: bool = False
    ) -> np.ndarray:
        """Click probabilities float32 [B].

        Args:
            user: inputs whose first row has the user's features; None: each row has its own.
            logits: give them instead.

        Raises:
            BadId: an id is out of its table's range.
            BadRequest: an input lacks a feature, or there is a number that is not finite.
        """
        return self.ready(items, user, logits=logits)()

    def ready(self, items: Inputs, user: Inputs | None = None, *, logits: bool = False) -> Ready:
        """What gives the same once it is called, in whichever thread; until this one has more.

        Raises:
            BadRequest: an input lacks a feature.
        """
        if not items.rows:
            return Ready(lambda: np.empty(0, np.float32))
        call = self._call(items, user)
        score = partial(self.run, call, items.rows, shares_user=user is not None, logits=logits)
        return Ready(score, held=(items, user))

    def run(self, call: Any, rows: int, *, shares_user: bool, logits: bool = False) -> np.ndarray:
        """Click probabilities float32 [rows] of a call, as `score` gives them.

        Args:
            call: native.Call, or a pointer to one.
            shares_user: its last inputs are of one user for all rows.
        """
        scores = np.empty(rows, np.float32)
        user = self.user_part(call) if shares_user else None
        parts = min(self.threads, rows // THREAD_ROWS)
        if parts <= 1:
            self.score_part(call, user, 0, rows, scores, logits=logits)
            return scores
        edges = np.linspace(0, rows, parts + 1).astype(int).tolist()
        score_part = partial(self.score_part, logits=logits)
        waiting = [
            self._pool.submit(score_part, call, user, first, last, scores)
            for first, last in pairwise(edges)
        ]
        wait(waiting)  # all of them, since they write into `scores`
        for done in waiting:
            done.result()
        return scores

    def user_part(self, call: Any) -> np.ndarray | None:
        """What a call computes once for all rows of its one user; None: nothing."""
        if not self._program.splits:
            return None
        found, bad = np.empty(self._program.struct.user_width, np.float32), BAD()
        code = self._library.embedcomp_user(self.program_at, call, address(found), bad)
        self.check(code, bad)
        return found

    def score_part(
        self,
        call: Any,
        user: np.ndarray | None,
        first: int,
        last: int,
        scores: np.ndarray,
        *,
        logits: bool = False,
    ) -> None:
        """Put the scores of some rows of a call in their places, float32 [rows].

        Args:
            user: the user's part, where the rows share one.
        """
        bad, user_at = BAD(), 0 if user is None else address(user)
        code = self._library.embedcomp_score(
            self.program_at, call, user_at, first, last, not logits, address(scores), bad
        )
        self.check(code, bad)

    def check(self, code: int, bad: ctypes.Array[ctypes.c_int64]) -> None:
        """Say what is wrong; see Problem in engine.h."""
        if code == native.BAD_ID:
            feature = self._graph.features[bad[0]]
            raise BadId(feature.name, bad[1], self._program.rows[feature.table])
        if code == native.BAD_BAGS:
            raise BadRequest(
                f"input {self._leaves[bad[0] % len(self._leaves)]}",
                "its lengths or offsets do not fit its values",
            )
        if code == native.NOT_FINITE and bad[0] >= self.dense:  # sums of rows, given from outside
            code = native.NO_SCORE
        if code == native.NOT_FINITE:
            raise BadRequest(
                f"dense input {bad[0]}",
                f"row {bad[1]} holds a number that is not finite; give a number or leave it out",
            )
        if code == native.NO_SCORE:
            raise BadRequest("score", f"row {bad[1]} has none: its numbers grow beyond float32")

    def _call(self, items: Inputs, user: Inputs | None) -> native.Call:
        """The addresses of a call's inputs, in this thread's own structure."""
        call = getattr(self._calls, "call", None)
        if call is None:
            call = self._calls.call = native.new_call(2 * len(self._leaves), 2 * len(items.dense))
        groups, dense, stride = call.arrays
        keys = []
        for side, inputs in enumerate((items, user)):
            if inputs is None:
                continue
            for i, leaf in enumerate(self._leaves):
                group, ids = groups[side * len(self._leaves) + i], inputs.ids[leaf]
                group.ids, group.offsets, group.lengths = ids.ids, ids.offsets, ids.lengths
                group.weights, group.batch, group.stride = ids.weights, inputs.rows, ids.stride
                group.features, group.total = len(ids.keys), ids.total
                keys.append(ids.keys)
            for i, (at, width) in enumerate(inputs.dense):
                dense[2 * i + side], stride[2 * i + side] = at, width
                if user is None:
                    dense[2 * i + 1], stride[2 * i + 1] = at, width
        call.count = len(keys)
        layout = self.layout(tuple(keys), split=user is not None)
        call.layout = layout  # for as long as the call points to it
        call.group, call.place = layout.at
        return call

    @property
    def groups(self) -> int:
        """Inputs of ids that the graph reads."""
        return len(self._leaves)

    def layout(self, keys: tuple[tuple[str, ...], ...], *, split: bool) -> Layout:
        """Group and place of each feature, in inputs whose keys these are.

        Args:
            split: the second half of them are the user's.

        Raises:
            BadRequest: a feature is in none.
        """
        found = self._layouts.get((keys, split))
        if found is None:
            leaves, places = self._leaves, np.zeros((2, len(self._graph.features)), np.int32)
            for f, feature in enumerate(self._graph.features):
                side = len(leaves) if split and feature.name in self._user else 0
                group = side + leaves.index(feature.leaf)
                place = feature.column
                if feature.key is not None:
                    if feature.key not in keys[group]:
                        raise BadRequest(feature.key, "is missing from the inputs")
                    place = keys[group].index(feature.key)
                places[:, f] = group, place
            at = address(places[0]), address(places[1])
            found = self._layouts[keys, split] = Layout(places, at)
        return found


@dataclass(frozen=True, slots=True)
class Layout:
    """Group and place of each of a graph's features, and where the engine finds them."""

    numbers: np.ndarray  # int32 [2, features]
    at: tuple[int, int]


BAD = ctypes.c_int64 * 2  # what is wrong, see Problem in engine.h
