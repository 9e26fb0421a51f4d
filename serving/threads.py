"""Threads of calls: one for each that is taken, and one that refuses what is too much.

gRPC gives a call its thread before its message is there. So there are as many threads as calls,
lest clients that send no message keep others out; how many work at a time is up to scoring.py.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NoReturn

import grpc

from embedcomp.serving.errors import retry_after

OTHERS = 4  # calls at a time that need no scoring: probes, and what models there are
BEYOND = 2  # calls at a time that are told when to come back; of more, gRPC says only that they are
# too many, which takes half as long
NICER = 5  # than the thread that receives calls, which else refuses nobody in time


class CallThreads(ThreadPoolExecutor):
    """Runs calls in the order that they came, and knows how many there are."""

    def __init__(self, calls: int):
        super().__init__(calls + OTHERS, "call", initializer=_let_others_go_first)
        self._lock, self.taken = threading.Lock(), 0
        self._here = threading.local()

    @property
    def came(self) -> float:
        """When this thread's call came, by time.perf_counter; now, if it has none."""
        return getattr(self._here, "came", None) or time.perf_counter()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            self.taken += 1
        return super().submit(self._run, time.perf_counter(), fn, args, kwargs)

    def _run(self, came: float, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._here.came = came
        try:
            return fn(*args, **kwargs)
        finally:
            self._here.came = None
            with self._lock:
                self.taken -= 1


def _let_others_go_first() -> None:
    """Have this thread run after the process's others where there are too few cores."""
    with suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICER)


class Room(grpc.ServerInterceptor):
    """Refuses calls of some methods where so many are there already; others always get in.

    came: calls that have come so far.

    Args:
        methods: those that score.
        hint_s: tells after how many seconds a refused call may come back.
        told: is told the method of each call that is refused.
    """

    def __init__(
        self,
        threads: CallThreads,
        calls: int,
        methods: Collection[str],
        hint_s: Callable[[], float],
        told: Callable[[str], None],
    ):
        self._threads, self._calls, self._methods = threads, calls, frozenset(methods)
        self._told = told
        self._came, self.came = itertools.count(1), 0

        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
            context.set_trailing_metadata((retry_after(hint_s()),))
            said = f"this server takes {calls} calls at a time; come back later"
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said)
            raise AssertionError("abort raises")

        refuse.experimental_thread_pool = ThreadPoolExecutor(1, "refused")  # type: ignore[attr-defined]
        self._refusal = grpc.stream_unary_rpc_method_handler(refuse)  # it waits for no message

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        self.came = next(self._came)
        if details.method not in self._methods or self._threads.taken < self._calls:
            return continuation(details)
        self._told(details.method)
        return self._refusal
