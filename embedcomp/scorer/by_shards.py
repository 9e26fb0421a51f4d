"""Scoring by the compiled engine, with the rows of large tables from shards.

A call waits for its rows while it is read, in its own thread; what is scored is all there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from embedcomp.engine.engine import Ready
from embedcomp.engine.prepare import Part, from_parts
from embedcomp.engine.requests import Requests
from embedcomp.engine.standalone import Standalone
from embedcomp.log.features import Features
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.sharding.cutting import Cutting
from embedcomp.sharding.front import Front, FrontEngine, FrontRequests, Outside, Shards


class ByShards(ByEngine):
    """The compiled engine of a front."""

    _engine: FrontEngine

    def __init__(
        self,
        alone: Standalone,
        held: Mapping[str, np.ndarray],
        threads: int | None,
        precision: str | None,
        *,
        cutting: Cutting,
        version: int,
        shards: Shards,
    ):
        outside = Outside(alone, cutting)
        super().__init__(alone, held, threads, precision, outside.inputs)
        self._program.rows |= {name: table.ids for name, table in cutting.tables.items()}
        front = Front(outside, self._program.tables, version, shards)
        self._engine = FrontEngine(alone, self._program, threads, outside, front)

    def requests(self, features: Features) -> Requests:
        if self._read is None or self._read.features is not features:
            self._read = FrontRequests(self._engine, features)
        return self._read

    def ready_columns(
        self, features: Features, items: pa.RecordBatch, user: pa.RecordBatch | None
    ) -> Ready:
        return self.ready_slowly(features, items, user)

    def ready_parts(self, parts: Sequence[Part]) -> Ready:
        return self._engine.ready(from_parts(parts, self._alone.leaves))
