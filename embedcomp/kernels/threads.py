"""How many threads numerical libraries may take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # items of each thread that wait or are worked on
FEW = 1 << 20  # numbers, of which no operation is long enough to be worth a second thread


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, the BLAS of numpy and scipy, and scikit-learn once it is imported.

    Sums by several threads differ in the last bit.
    """
    import torch  # which takes seconds, and a scorer needs none

    threads = torch.get_num_threads()
    with _controller().limit(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def threads_for(numbers: int) -> AbstractContextManager[None]:
    """One thread for work on a few numbers, else as many as there are.

    After each operation, OpenMP's threads wait for one another without sleeping. Where another
    process has the core of one of them, that takes longer than thousands of small operations.
    """
    return one_thread() if numbers <= FEW else nullcontext()


def cores() -> int:
    """Cores for this process: as many as the container has, and as many as torch may take."""
    import torch
    from joblib import cpu_count

    return min(torch.get_num_threads(), int(cpu_count()))


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`work` of each item in the order of the items, of which only a few are held at a time."""
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@cache
def _controller() -> ThreadpoolController:
    """Controller of the loaded libraries' threads; finding them takes longer than most calls."""
    return ThreadpoolController()
