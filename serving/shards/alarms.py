"""Deadlines of calls that cannot be told one: whoever is late is called back, in a thread."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count


class Alarms:
    """Calls back at times, unless what they are for is over by then."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int]] = []  # a heap; those that are over are in it until then
        self._calls: dict[int, Callable[[], None]] = {}
        self._numbers = count()
        self._thread: threading.Thread | None = None

    @contextmanager
    def at(self, when: float, call: Callable[[], None]) -> Iterator[None]:
        """Call back then (by time.monotonic), if the block is not over."""
        number = next(self._numbers)
        with self._changed:
            if self._thread is None:  # not before there is work: a process may be forked until then
                self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
                self._thread.start()
            self._calls[number] = call
            heapq.heappush(self._due, (when, number))
            if self._due[0][1] == number:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._calls.pop(number, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._due and self._due[0][1] not in self._calls:
                    heapq.heappop(self._due)
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                call = self._calls.pop(heapq.heappop(self._due)[1])
            call()


@cache
def of_process() -> Alarms:
    """The alarms of this process, which one thread watches."""
    return Alarms()
