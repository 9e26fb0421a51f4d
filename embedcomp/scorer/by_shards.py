"""Scoring by the compiled engine, with the rows of large tables from shards.

A call waits for its rows while it is read, in its own thread; what is scored is all there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from embedcomp.engine.engine import Ready
from embedcomp.engine.standalone import Standalone
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.sharding.cutting import Cutting
from embedcomp.sharding.front import Front, FrontEngine, FrontRequests, Outside, Shards


class ByShards(ByEngine):
    """The compiled engine of a front."""

    reads = FrontRequests

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
        outside = Outside(alone, cutting.tables)
        super().__init__(alone, held, threads, precision, outside.inputs)
        self._program.rows |= {name: table.ids for name, table in cutting.tables.items()}
        front = Front(outside, self._program.tables, version, shards)
        self._engine = FrontEngine(alone, self._program, threads, outside, front)

    def made_ready(self, make: Callable[[], Ready]) -> Ready:
        """What is made now, with its rows."""
        return make()
