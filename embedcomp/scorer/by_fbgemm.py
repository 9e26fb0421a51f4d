"""Scoring by the compiled engine, with rows in fbgemm's layouts looked up by fbgemm's operator.

They come to the engine as rows of shards do, though nobody is asked but this process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from embedcomp.engine.engine import Ready
from embedcomp.engine.standalone import Standalone
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.sharding.front import Front, FrontEngine, FrontRequests, Outside
from embedcomp.sharding.whole import WholeTables


class ByFbgemm(ByEngine):
    """The compiled engine, beside fbgemm's operator.

    Raises:
        BadSettings: torch or fbgemm is missing.
    """

    reads = FrontRequests

    def __init__(
        self,
        alone: Standalone,
        held: Mapping[str, np.ndarray],
        threads: int | None,
        precision: str | None,
    ):
        tables = WholeTables(alone, held)
        outside = Outside(alone, tables.cut)
        super().__init__(alone, held, threads, precision, outside.inputs)
        tables.open(self._program.tables)
        self.resident = {**self.resident, **tables.resident}
        front = Front(outside, self._program.tables, 0, tables)
        self._engine = FrontEngine(alone, self._program, threads, outside, front)
        number = len(tables.cut)
        self.description = replace(self.description, lookups=f"fbgemm ({number} tables)")
        logging.getLogger(__name__).info(
            "fbgemm looks up %s tables, with a copy of %s bytes in memory",
            number, f"{tables.copied_bytes:,}",
        )  # fmt: skip

    def made_ready(self, make: Callable[[], Ready]) -> Ready:
        """What is made now, with its rows."""
        return make()
