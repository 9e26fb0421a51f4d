"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's names and numbers: mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more
_NEVER_TRIM = (1 << 31) - 1


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Within the block, glibc does not give freed buffers back to the system; at its end, it does.

    A batch's activations are a few MB each: glibc maps and unmaps them anew at every step, and
    touching fresh pages costs as much as the arithmetic. The thresholds stay as they are set here:
    glibc cannot return to choosing them. With another C library nothing is done.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield
    finally:
        if libc is not None:
            libc.malloc_trim(0)
