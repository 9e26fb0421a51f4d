"""A thread for each call that is taken, and a few more that tell the others that they are not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

REFUSERS = 4
BEYOND = 64  # calls over those that are taken that are told so; gRPC refuses others by itself


class CallThreads(ThreadPoolExecutor):
    """Runs so many calls at a time. Calls beyond are run by threads of their own, in which `full`
    is true: probes are answered there as well, and what would have to be scored is refused."""

    def __init__(self, calls: int):
        super().__init__(calls, "call")
        self._beyond = ThreadPoolExecutor(REFUSERS, "refused")
        self._lock, self._left = threading.Lock(), calls
        self._here = threading.local()

    @property
    def full(self) -> bool:
        """Whether this thread's call came when there was no room for it."""
        return getattr(self._here, "full", False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            room = self._left > 0
            self._left -= room
        if room:
            return super().submit(self._run, fn, args, kwargs)
        return self._beyond.submit(self._run_beyond, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._beyond.shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            with self._lock:
                self._left += 1

    def _run_beyond(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._here.full = True
        return fn(*args, **kwargs)
