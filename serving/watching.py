"""What is told of every call: counts, a line of the log, spans of a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from embedcomp.serving.call_log import CallLog
from embedcomp.serving.caller import Caller
from embedcomp.serving.metrics import Metrics
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.tracing import Tracing


class Watching:
    """Sees every call from its arrival at a door to its end.

    tracing: None: nobody asked for it, or calls of this door have no spans.
    """

    def __init__(self, metrics: Metrics, settings: ServerSettings, tracing: Tracing | None = None):
        self.metrics, self._log, self._tracing = metrics, CallLog(settings), tracing

    @contextmanager
    def call(self, door: str, caller: Caller) -> Iterator[None]:
        """A call of a door, which notes on the caller what becomes of it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.called(door, caller.code, time.perf_counter() - began)
            self._log.end(door, caller, began)
            if self._tracing is not None:
                self._tracing.tell_parts(caller)
