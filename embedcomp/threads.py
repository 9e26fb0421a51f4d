"""How many threads numerical libraries may take."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """One thread for the BLAS of numpy and scipy and for scikit-learn, once that is imported.

    Sums by several threads differ in the last bit.
    """
    return _controller().limit(limits=1)


@cache
def _controller() -> ThreadpoolController:
    """Of the libraries that are loaded; finding them takes longer than most of what is limited."""
    return ThreadpoolController()
