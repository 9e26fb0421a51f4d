"""Structures of rows that are looked up elsewhere (slots.h), and the engine's functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_int64, c_void_p
from functools import cache

from embedcomp.kernels import native

SLOTS = 256  # that the ids of a table lie in
MALFORMED, OTHER_VERSION, NO_SUCH_TABLE, NO_SUCH_ID, NOT_HERE = range(1, 6)


class Slotted(ctypes.Structure):
    _fields_ = (
        ("slots", c_void_p),
        ("num_ids", c_int64),
        ("width", c_int64),
        ("number", c_int64),
        ("firsts", c_void_p),
        ("given", c_int64),
    )


class Numbered(ctypes.Structure):
    _fields_ = (
        ("rows", c_void_p),
        ("offsets", c_void_p),
        ("weights", c_void_p),
        ("tables", c_void_p),
        ("parts", c_int64),
        ("bags", c_int64),
        ("count", c_int64),
    )


class Outside(ctypes.Structure):
    _fields_ = (
        ("near", POINTER(native.Stored)),
        ("near_ids", c_int64),
        ("unknown", c_int64),
        ("num_ids", c_int64),
        ("padding", c_int64),
        ("feature", c_int32),
        ("table", c_int32),
        ("width", c_int32),
        ("count", c_int32),
        ("mean", c_int32),
        ("reserved", c_int32),
    )


class Front(ctypes.Structure):
    _fields_ = (
        ("features", POINTER(Outside)),
        ("count", c_int64),
        ("dense", c_int64),
        ("shards", c_int64),
        ("version", c_int64),
    )


class Routed(ctypes.Structure):
    _fields_ = (
        ("call", POINTER(native.Call)),
        ("messages", POINTER(c_void_p)),
        ("words", POINTER(c_int64)),
        ("ids", POINTER(c_int64)),
    )


@cache
def library() -> ctypes.CDLL:
    """The engine's functions for rows elsewhere.

    Raises:
        NotBuilt: they are missing.
    """
    found = native.needed()
    bad = POINTER(c_int64)
    found.embedcomp_route.restype = found.embedcomp_gather.restype = c_int32
    found.embedcomp_route.argtypes = [c_void_p, c_void_p, POINTER(native.Call), c_void_p, bad]
    found.embedcomp_gather.argtypes = [c_void_p, c_int64, c_void_p, c_int64]
    found.embedcomp_do_without.restype = found.embedcomp_settle.restype = None
    found.embedcomp_do_without.argtypes = [c_void_p, c_int64]
    found.embedcomp_settle.argtypes = [c_void_p]
    found.embedcomp_asked.restype = c_int64
    found.embedcomp_asked.argtypes = [c_void_p, c_int64, c_void_p, c_int64, c_int64, bad]
    found.embedcomp_number.restype = found.embedcomp_pool.restype = c_int32
    found.embedcomp_number.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, bad]
    found.embedcomp_pool.argtypes = [c_void_p] * 2 + [c_int64, c_void_p, c_int64, c_void_p, bad]
    return found
