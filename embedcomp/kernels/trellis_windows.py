"""What windows of trellis-coded rows (storage/kinds/trellis.py) stand for: bits that end with a
column's code, and begin in those before it.

A grid is [3, width]: scales, offsets, and bits, with a minus where they are coded by the trellis.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

BITS = 8  # of a window
CODED = 6  # most bits of a column that are coded by the trellis, which is worth nothing with more
NUMBERS = Path(__file__).with_suffix(".npy")  # made by benchmarks/trellis.py


@cache
def numbers() -> np.ndarray:
    """What windows stand for in a normal column, float32 [CODED + 1, 256] by its bits."""
    found: np.ndarray = np.load(NUMBERS)
    return found


def words(grid: np.ndarray) -> np.ndarray:
    """What windows stand for in columns of this grid, float32 [width, 256]."""
    scale, offset, signed = grid.astype(np.float32)[:, :, None]
    bits = np.abs(signed).astype(np.int32)
    steps = np.arange(1 << BITS) >> (BITS - bits)  # 0 without bits
    named = numbers()[np.where(signed < 0, bits, 0)[:, 0]]
    found: np.ndarray = np.where(signed < 0, named, steps.astype(np.float32)) * scale + offset
    return found


def places(grid: np.ndarray) -> np.ndarray:
    """Where windows begin, int32 [width], in bits from 8 before a row; 0 for columns without."""
    bits = np.abs(grid[2]).astype(np.int32)
    return np.where(bits > 0, bits.cumsum(dtype=np.int32), 0)
