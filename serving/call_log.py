"""A line of JSON a call on stderr, for a share of calls."""

from __future__ import annotations

import json
import logging
import random
import time
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from embedcomp.serving.caller import Caller
from embedcomp.serving.columns import columns_of
from embedcomp.serving.settings import ServerSettings

NAME = "embedcomp.calls"  # of the logger; whoever gives it handlers decides where lines go


class CallLog:
    """Writes a line of calls whose request id is chosen, by every server alike, or by chance of
    those that have none."""

    def __init__(self, settings: ServerSettings):
        self._below = settings.log_share * (1 << 32)
        self._values = settings.log_values
        self._logger = logging.getLogger(NAME)
        if self._below and not self._logger.handlers:
            self._logger.addHandler(logging.StreamHandler())
            self._logger.propagate = False
        if self._below and self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)

    def end(self, door: str, caller: Caller, began: float) -> None:
        """Write a call's line, if it is chosen; its door began with it then, by perf_counter."""
        if not self._below:
            return
        part = crc32(caller.id.encode()) if caller.id else random.getrandbits(32)
        if part < self._below:
            line = self._line(door, caller, began)
            self._logger.info(json.dumps(line, ensure_ascii=False))

    def _line(self, door: str, caller: Caller, began: float) -> dict[str, Any]:
        served, came = caller.served, caller.came or began  # before that it waited for its thread
        said = caller.said if self._values else caller.plain
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": caller.request_id,
            "door": door,
            "model": None if served is None else served.name,
            "version": None if served is None else served.version,
            "rows": caller.rows,
            "code": caller.code.name,
            "message": said,
            "ms": round(1e3 * (time.perf_counter() - min(came, began)), 3),
            "queue_ms": round(1e3 * caller.queued_s, 3),
        }
        if self._values and served is not None and caller.read is not None:
            line["columns"] = columns_of(served, caller.read)
        return line
