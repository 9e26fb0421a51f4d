"""The compiled engine (engine.cpp) and the structures that it shares with Python (engine.h)."""

from __future__ import annotations

import ctypes
import logging
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from embedcomp.errors import EmbedcompError


class NotBuilt(EmbedcompError):
    """The compiled engine is missing, and torch has to score."""

    def __init__(self) -> None:
        super().__init__(
            "the compiled engine was not built; install a C++ compiler and run pip install again"
        )


class Probe(ctypes.Structure):
    _fields_ = (
        ("rows", c_int64),
        ("start", c_int64),
        ("divisor", c_int64),
        ("first", c_int64),
        ("stride", c_int64),
        ("salt", c_int64),
        ("per_row", c_uint64),
        ("per_divisor", c_uint64),
        ("kind", c_int32),
        ("reserved", c_int32),
    )


class Stored(ctypes.Structure):
    _fields_ = (
        ("rows", c_void_p),
        ("row_bytes", c_int64),
        ("num_ids", c_int64),
        ("byte", c_void_p),
        ("bit", c_void_p),
        ("mask", c_void_p),
        ("kind", c_int32),
        ("width", c_int32),
        ("padding", c_int64),
        ("last", c_int64),
        ("map", c_void_p),
        ("map_bytes", c_int32),
        ("row_bits", c_int32),
        ("columns", c_void_p),
        ("values", c_void_p),
        ("words", c_void_p),
        ("first", c_void_p),
        ("at", c_void_p),
        ("parts", c_int32),
        ("narrow", c_int32),
        ("tiers", c_void_p),
        ("firsts", c_void_p),
        ("index_tiers", c_int32),
        ("probe_count", c_int32),
        ("probes", c_void_p),
        ("own", c_int64),
        ("own_start", c_int64),
        ("combine", c_int32),
        ("reserved", c_int32),
        ("grid", c_void_p),
    )


class Piece(ctypes.Structure):
    _fields_ = (("buffer", c_int32), ("at", c_int32), ("width", c_int32))


class Op(ctypes.Structure):
    _fields_ = (
        ("kind", c_int32),
        ("which", c_int32),
        ("out", c_int32),
        ("out_at", c_int32),
        ("x_pieces", c_int32),
        ("y_pieces", c_int32),
        ("times", c_int32),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("format", c_int32),
        ("brain_in", c_int32),
        ("brain_out", c_int32),
        ("relu", c_int32),
        ("init", c_int32),
        ("mean", c_int32),
        ("counted", c_int32),
        ("runs", c_int32),
        ("counts", Piece),
        ("low", c_float),
        ("high", c_float),
        ("x", ctypes.POINTER(Piece)),
        ("y", ctypes.POINTER(Piece)),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("run", c_void_p),
        ("used", c_void_p),
        ("table", ctypes.POINTER(Stored)),
    )


class Buffer(ctypes.Structure):
    _fields_ = (
        ("at", c_int64),
        ("width", c_int64),
        ("stage", c_int32),
        ("reserved", c_int32),
        ("constant", c_void_p),
    )


class Program(ctypes.Structure):
    _fields_ = (
        ("user_ops", ctypes.POINTER(Op)),
        ("item_ops", ctypes.POINTER(Op)),
        ("buffers", ctypes.POINTER(Buffer)),
        ("user_count", c_int64),
        ("item_count", c_int64),
        ("user_width", c_int64),
        ("item_width", c_int64),
        ("scratch", c_int64),
        ("dots", c_int64),
        ("out", c_int64),
        ("block", c_int64),
    )


class Ids(ctypes.Structure):
    _fields_ = (
        ("ids", c_int64),
        ("offsets", c_int64),
        ("lengths", c_int64),
        ("weights", c_int64),
        ("batch", c_int64),
        ("stride", c_int64),
        ("features", c_int64),
        ("total", c_int64),
    )


class Call(ctypes.Structure):
    _fields_ = (
        ("groups", ctypes.POINTER(Ids)),
        ("group", c_int64),
        ("place", c_int64),
        ("dense", ctypes.POINTER(c_int64)),
        ("stride", ctypes.POINTER(c_int64)),
        ("count", c_int64),
    )


class Rising(ctypes.Structure):
    _fields_ = (("blocks", c_void_p), ("bits", c_int64))


class Known(ctypes.Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("starts", Rising),
        ("text", c_void_p),
        ("texts", Rising),
        ("text_bytes", c_int64),
        ("first_row", c_int64),
        ("ids", c_int64),
        ("smallest", c_uint64),
        ("span", c_uint64),
        ("buckets", c_uint64),
        ("remainders", c_uint64),
        ("shift", c_int32),
        ("code_bits", c_int32),
        ("kind", c_int32),
        ("unknown_row", c_int32),
        ("null_row", c_int32),
        ("reserved", c_int32),
    )


class Feature(ctypes.Structure):
    _fields_ = (
        ("known", Known),
        ("is_dense", c_int32),
        ("many", c_int32),
        ("is_user", c_int32),
        ("transform", c_int32),
        ("mean", c_float),
        ("scale", c_float),
    )


class Reader(ctypes.Structure):
    _fields_ = (
        ("features", ctypes.POINTER(Feature)),
        ("names", Known),
        ("single", c_int64),
        ("many", c_int64),
        ("dense", c_int64),
        ("layout", c_int64 * 2),
        ("places", c_int64 * 2),
        ("seen", c_void_p),
        ("groups", c_int32),
        ("reserved", c_int32),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("message", c_void_p),
        ("length", c_int64),
        ("model", c_void_p),
        ("model_length", c_int64),
        ("version", c_int64),
        ("items", c_void_p),
        ("item_columns", c_void_p),
        ("item_types", c_void_p),
        ("user", c_void_p),
        ("user_columns", c_void_p),
        ("user_types", c_void_p),
        ("max_rows", c_int64),
        ("max_ids", c_int64),
    )


class Encoded(ctypes.Structure):
    _fields_ = (
        ("call", ctypes.POINTER(Call)),
        ("rows", c_int64),
        ("total", c_int64),
        ("ids", c_void_p),
        ("lengths", c_void_p),
        ("dense", c_void_p),
        ("shares_user", c_int32),
        ("reserved", c_int32),
    )


def new_call(groups: int, dense: int) -> Call:
    """A call with room for these numbers of inputs; `arrays` are its groups, dense and stride."""
    arrays = (Ids * groups)(), (c_int64 * max(dense, 1))(), (c_int64 * max(dense, 1))()
    call = Call(groups=arrays[0], dense=arrays[1], stride=arrays[2])
    call.arrays = arrays
    return call


KINDS = {
    "float32": 0,
    "float16": 1,
    "row_int8": 2,
    "row_int4": 3,
    "column_int8": 4,
    "column_int4": 5,
    "column_mixed": 6,
    "row_int2": 7,
    "csr8": 8,
    "csr16": 9,
    "bfloat16": 10,
    "symmetric_int8": 11,
    "codebook": 12,
    "atoms": 13,
    "tiered": 14,
    "residual": 15,
    "chunked_float16": 16,
    "chunked_int8": 17,
}
PROBES = ("digit", "hash", "permuted")
COMBINES = ("concat", "add", "multiply")
KNOWN = ("numbers", "strings", "row numbers")  # ids that a column may have
COLUMNS = ("int64", "string", "float", "double", "int32")  # Arrow's types that are read
TRANSFORMS = ("none", "log1p")
BAD_ID, BAD_BAGS, NOT_FINITE, NO_SCORE, UNREAD, TOO_LARGE = range(1, 7)
LOOK_UP, INPUT, LINEAR, DOTS, UNARY, BINARY, SUM = range(7)
FORMATS = ("float32", "bfloat16", "int8")  # of the numbers that are multiplied
VECTOR = 16  # floats of a vector register, as the kernels take them
LANES = {"float32": 16, "bfloat16": 32, "int8": 64}  # products of one vector instruction
UNARIES = (
    *("copy", "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "negative", "abs", "exp"),
    *("log", "sqrt", "rsqrt", "square", "reciprocal", "clamp", "logit", "softplus", "leaky_relu"),
    *("elu", "affine"),
)
BINARIES = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")


def address(array: np.ndarray) -> int:
    """Where an array's numbers lie."""
    found: int = array.__array_interface__["data"][0]
    return found


def file() -> Path | None:
    """Where the engine is; None where it was not built."""
    return next(Path(__file__).parent.glob("_engine*.so"), None)


@cache
def library() -> ctypes.CDLL | None:
    """The engine's functions; None where they were not built, with a warning once a process."""
    built = file()
    if built is not None:
        found = ctypes.CDLL(str(built))
        found.embedcomp_user.restype = found.embedcomp_score.restype = c_int32
        call, id = ctypes.POINTER(Call), ctypes.POINTER(c_int64)
        found.embedcomp_user.argtypes = [c_void_p, call, c_void_p, id]
        found.embedcomp_score.argtypes = [
            *(c_void_p, call, c_void_p, c_int64, c_int64, c_int32, c_void_p, id)
        ]
        found.embedcomp_rows.restype = found.embedcomp_to_brain.restype = None
        found.embedcomp_nearest.restype = found.embedcomp_likest.restype = None
        found.embedcomp_trellis.restype = None
        found.embedcomp_nearest.argtypes = [
            *(c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64)
        ]
        found.embedcomp_likest.argtypes = [
            *(c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_void_p)
        ]
        found.embedcomp_trellis.argtypes = [
            *(c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p)
        ]
        found.embedcomp_rows.argtypes = [c_void_p, c_int64, c_int64, c_void_p]
        found.embedcomp_to_brain.argtypes = [c_void_p, c_int64, c_int64, c_void_p]
        found.embedcomp_know.restype = found.embedcomp_known.restype = None
        found.embedcomp_know_starts.restype = found.embedcomp_pack_rising.restype = None
        found.embedcomp_know.argtypes = [c_void_p, c_void_p, c_void_p]
        found.embedcomp_know_starts.argtypes = [c_void_p, c_void_p, c_void_p]
        found.embedcomp_pack_rising.argtypes = [c_void_p, c_void_p, c_int64]
        found.embedcomp_known.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_void_p]
        found.embedcomp_read.restype = found.embedcomp_answer.restype = c_int32
        found.embedcomp_read.argtypes = [c_void_p, c_void_p, c_void_p]
        found.embedcomp_answer.argtypes = [
            *(c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, id)
        ]
        found.embedcomp_join.restype = c_int32
        found.embedcomp_join.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, id]
        found.embedcomp_standards.restype = c_int32
        found.embedcomp_standards.argtypes = [c_void_p, c_void_p, c_int64]
        found.embedcomp_multiply.restype = c_float
        found.embedcomp_multiply.argtypes = [c_int32, c_int64]
        return found
    logging.getLogger(__name__).warning("%s; until then torch scores", NotBuilt())
    return None


def needed() -> ctypes.CDLL:
    """The engine's functions.

    Raises:
        NotBuilt: they are missing.
    """
    found = library()
    if found is None:
        raise NotBuilt
    return found
