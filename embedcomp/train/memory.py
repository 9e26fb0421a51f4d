"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import platform

# glibc's names and numbers: mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more
_NEVER_TRIM = (1 << 31) - 1


def keep_freed() -> None:
    """Tell glibc not to give a step's buffers back to the system; elsewhere, do nothing.

    A batch's activations are a few MB each: glibc maps and unmaps them anew at every step, and
    touching fresh pages costs as much as the arithmetic.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
