"""How many threads numerical libraries may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

from threadpoolctl import ThreadpoolController

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


@cache
def _controller() -> ThreadpoolController:
    """Controller of the loaded libraries' threads; finding them takes longer than most calls."""
    return ThreadpoolController()
