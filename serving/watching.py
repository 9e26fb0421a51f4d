"""What is told of every call: counts, and a line of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from embedcomp.serving.call_log import CallLog
from embedcomp.serving.caller import Caller
from embedcomp.serving.metrics import Metrics
from embedcomp.serving.settings import ServerSettings


class Watching:
    """Sees every call from its arrival at a door to its end."""

    def __init__(self, metrics: Metrics, settings: ServerSettings):
        self.metrics, self._log = metrics, CallLog(settings)

    @contextmanager
    def call(self, door: str, caller: Caller) -> Iterator[None]:
        """A call of a door, which notes on the caller what becomes of it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.metrics.called(door, caller.code, seconds)
            self._log.end(door, caller, seconds)
