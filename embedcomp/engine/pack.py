"""Weights as the engine reads them (kernels.inc): panels, with up to four inputs in a word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedcomp.kernels import native

BLOCK = 48  # rows at a time: what they need fits the second-level cache
PANEL, LANES = 64, native.VECTOR  # columns of a panel and of a vector


WORDS = {"float32": 1, "bfloat16": 2, "int8": 4}  # inputs in a word


@dataclass(frozen=True)
class Packed:
    """A weight as the engine reads it; scales and sums [outputs] are of bytes alone."""

    words: np.ndarray
    scales: np.ndarray | None = None
    sums: np.ndarray | None = None


def packed_bytes(inputs: int, outputs: int, form: str) -> int:
    """Bytes of a packed weight [outputs, inputs], with its scales and sums."""
    padded = -(-outputs // LANES) * LANES
    return 4 * padded * (-(-inputs // WORDS[form]) + 2 * (form == "int8"))


def pack(weight: np.ndarray, form: str) -> Packed:
    """A weight float32 [outputs, inputs] as panels [inputs, up to 64 outputs].

    In bfloat16, two inputs lie beside each other in one 32-bit word, and four bytes in int8.
    """
    outputs, inputs = weight.shape
    if form == "float32":
        return Packed(_panels(weight.T))
    if form == "bfloat16":
        words = np.empty((outputs, (inputs + 1) // 2), np.uint32)
        native.needed().embedcomp_to_brain(weight.ctypes.data, outputs, inputs, words.ctypes.data)
        return Packed(_panels(words.T))
    scales = np.abs(weight).max(1, initial=0) / 127
    scales[scales == 0] = 1
    codes = np.pad(np.rint(weight / scales[:, None]).astype(np.int8), ((0, 0), (0, -inputs % 4)))
    padding = -outputs % LANES
    return Packed(
        _panels(np.ascontiguousarray(codes).view(np.uint32).T),
        np.pad(scales, (0, padding)),
        np.pad(codes.sum(1, dtype=np.int32), (0, padding)),
    )


def _panels(columns: np.ndarray) -> np.ndarray:
    """Words [inputs, outputs] with 64 outputs beside each other, or as many as are left."""
    panels = []
    for first in range(0, columns.shape[1], PANEL):
        part = columns[:, first : first + PANEL]
        panels.append(np.pad(part, ((0, 0), (0, -part.shape[1] % LANES))).reshape(-1))
    return np.concatenate(panels) if panels else np.zeros(0, columns.dtype)
