"""The compiled functions of lookup.cpp."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class Table(ctypes.Structure):
    """As Table in lookup.cpp."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("byte", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("decoder", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("mean", ctypes.c_int32),
        ("decodes", ctypes.c_int32),
        ("folded", ctypes.c_int32),
        ("codes_at", ctypes.c_int64),
        ("values_at", ctypes.c_int64),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The functions; None where they were not built, and torch has to do their work."""
    for file in Path(__file__).parent.glob("_lookup*.so"):
        found = ctypes.CDLL(str(file))
        found.embedcomp_lookup.restype = _NUMBER
        found.embedcomp_lookup.argtypes = [
            *(_POINTER, _NUMBER, _NUMBER, _POINTER, _POINTER),
            *(_POINTER, _NUMBER, _POINTER, _NUMBER),
        ]
        found.embedcomp_decode_columns.restype = None
        found.embedcomp_decode_columns.argtypes = [
            *(_POINTER, _NUMBER, _NUMBER, _NUMBER),
            *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
        ]
        return found
    logging.getLogger(__name__).warning(
        "the compiled lookup was not built, so scoring is slower; install a C++ compiler and run "
        "pip install again"
    )
    return None
