"""Scoring by the compiled engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from embedcomp.engine.description import COMPILED, Description
from embedcomp.engine.engine import Engine, Ready
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.prepare import (
    Part,
    columns_of,
    encoded,
    from_parts,
    prepared,
    refuse_several,
)
from embedcomp.engine.program import Work
from embedcomp.engine.requests import Requests
from embedcomp.engine.standalone import Standalone
from embedcomp.log.features import Features
from embedcomp.log.rows import Rows


class ByEngine:
    """The compiled engine.

    reads: raw columns and requests into it.
    """

    reads: Callable[[Any, Features], Requests] = Requests

    def __init__(
        self,
        alone: Standalone,
        held: Mapping[str, np.ndarray],
        threads: int | None,
        precision: str | None,
        outside: Mapping[int, int] | None = None,
    ):
        assert alone.graph is not None
        self._alone = alone
        used = precision or alone.precision
        program = self._program = lower(
            alone.graph,
            alone.tensors(held),
            alone.user,
            alone.user_columns,
            precision=used,
            outside=outside,
        )
        self.work: Work | None = program.work
        self.resident: Mapping[str, int] = program.resident
        self.splits = program.splits
        self._engine = Engine(alone.graph, program, alone.user, threads)
        self._read: Requests | None = None  # raw columns, once there are any
        self.description = Description(name=COMPILED, threads=self._engine.threads, precision=used)

    def call(self, items: Sequence[Part], user: Sequence[Part] | None) -> Callable[[], np.ndarray]:
        ours = from_parts(items, self._alone.leaves)
        theirs = None if user is None else from_parts(user, self._alone.leaves)
        return partial(self._engine.score, ours, theirs)

    def score_inputs(self, inputs: Any, one_user: bool) -> np.ndarray:
        read = prepared(inputs, self._alone.leaves)
        if one_user and read.rows:
            refuse_several(inputs, self._alone)
        return self._engine.score(read, read if one_user else None)

    def ready_parts(self, parts: Sequence[Part]) -> Ready:
        return self.made_ready(lambda: self._engine.ready(from_parts(parts, self._alone.leaves)))

    def score_encoded(self, rows: Rows, features: Features) -> np.ndarray:
        return self._engine.score(encoded(rows, features))

    def score_columns(
        self,
        features: Features,
        items: pa.RecordBatch,
        user: pa.RecordBatch | None,
    ) -> np.ndarray:
        scores = self.requests(features).score(items, user)
        return self._slowly(features, items, user)() if scores is None else scores

    def made_ready(self, make: Callable[[], Ready]) -> Ready:
        """What is made once it is called, since nothing comes from elsewhere; what is wrong with a
        request is then told where it is scored, and counted there.
        """

        def scored() -> np.ndarray:
            return make()()

        return Ready(scored)

    def requests(self, features: Features) -> Requests:
        """What the engine reads raw columns by."""
        if self._read is None or self._read.features is not features:
            self._read = self.reads(self._engine, features)
        return self._read

    def ready_columns(
        self, features: Features, items: pa.RecordBatch, user: pa.RecordBatch | None
    ) -> Ready:
        return self.made_ready(lambda: self._slowly(features, items, user))

    def _slowly(
        self, features: Features, items: pa.RecordBatch, user: pa.RecordBatch | None
    ) -> Ready:
        """What the engine does not read by itself."""
        columns, theirs = columns_of(items, user)
        everything, rows = {**columns, **theirs}, items.num_rows
        separate = set(features.user.names) <= theirs.keys() and not (
            set(features.item.names) & theirs.keys()
        )
        if not theirs or not separate:
            return self._engine.ready(encoded(features.encode(everything, rows), features))
        dense = features.encode_dense(everything, rows)
        of_user, of_items = (Features(of.ids, ()) for of in (features.user, features.item))
        return self._engine.ready(
            encoded(of_items.encode(columns, rows), of_items, dense),
            encoded(of_user.encode(theirs, 1), of_user, dense),
        )
