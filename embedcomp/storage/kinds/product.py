"""Product quantization: a code for each group of columns, into the group's own codebook."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.storage.kind import (
    FP16_MAX,
    Kind,
    Reads,
    RowByRow,
    refuse_beyond,
    vectors,
)
from embedcomp.storage.kmeans import ENCODED_ROWS, column_scales, nearest, words_of
from embedcomp.storage.packing import pack, place_codes, unpack
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

BITS = (4, 8)


def named(name: str, **parameters: Any) -> Kind | None:
    if not name.startswith("product"):
        return None
    found = re.fullmatch(r"product([1-9]\d*)x([1-9]\d*)", name)
    if found is None:
        raise _unknown(name)
    return Product(int(found[1]), int(found[2]))


def _unknown(name: str) -> BadSettings:
    return BadSettings(
        f"there is no storage {name!r}; product codes have 4 or 8 bits and one part or more "
        "(product4x8)"
    )


def examples(rows: int, width: int) -> list[Kind]:
    return [Product(4, 8), Product(8, 4)]


@dataclass(frozen=True)
class Product(RowByRow):
    """A row takes parts * bits / 8 bytes, rounded up; a codeword stands for a group of columns.

    The grid is [words + 1, width]: codewords in 16-bit floats, since those of small tables are
    larger than their codes, and how much an error in a column matters within its group (a factor
    of the difference). Every row gets its nearest codes by itself, and what was encoded once is
    encoded the same again.
    """

    parts: int
    bits: int

    def __post_init__(self) -> None:
        if self.parts < 1 or self.bits not in BITS:
            raise _unknown(self.name)

    @property
    def name(self) -> str:
        return f"product{self.parts}x{self.bits}"

    @property
    def engine(self) -> str:
        return "codebook"

    @property
    def words(self) -> int:
        return 1 << self.bits

    def edges(self, width: int) -> list[int]:
        """First column of each group and the width; no group is empty, so there may be fewer."""
        groups = min(self.parts, width)
        return [width * group // max(groups, 1) for group in range(groups + 1)]

    def row_bytes(self, width: int) -> int:
        return -(-(len(self.edges(width)) - 1) * self.bits // 8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(self.words + 1, width, dtype=torch.float16)

    def fit(self, columns: Columns, matters: Tensor | None) -> Tensor:
        values, row_weights = columns.values, columns.weights
        refuse_beyond(FP16_MAX, values, self.name)
        grid = self.empty_grid(values.shape[1])
        for first, last in pairwise(self.edges(values.shape[1])):
            scales = column_scales(matters, first, last)
            words = words_of(values[:, first:last] * scales, row_weights, self.words)
            grid[:-1, first:last] = (words / scales).half()
            grid[-1, first:last] = scales.half()
        return grid

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        edges, scales = self.edges(values.shape[1]), grid[-1].float()
        words = grid[:-1].float() * scales  # [words, width]
        codes = values.new_empty(len(values), len(edges) - 1, dtype=torch.uint8)
        for start in range(0, len(values), ENCODED_ROWS):
            rows = values[start : start + ENCODED_ROWS] * scales
            for group, (first, last) in enumerate(pairwise(edges)):
                place = codes[start : start + ENCODED_ROWS, group]
                nearest(rows[:, first:last], words[:, first:last], place)
        return pack(codes, self.bits)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        edges, words = self.edges(width), grid[:-1].float()
        codes = unpack(stored, self.bits, len(edges) - 1)
        if not width:
            return words.new_empty(len(stored), 0)
        groups = enumerate(pairwise(edges))
        return torch.cat([words[:, a:b].index_select(0, codes[:, i]) for i, (a, b) in groups], 1)

    def moved(self, grid: Tensor, by: Tensor) -> Tensor:
        from embedcomp.storage.rounding import moved_words

        return torch.cat([moved_words(grid[:-1], by[:-1]), grid[-1:].float()])

    def decoding(self, at: native.Stored, grid: np.ndarray | None) -> tuple[None, tuple[Any, ...]]:
        assert grid is not None
        edges = np.array(self.edges(at.width), np.int32)
        groups = len(edges) - 1
        # each group's words, one after another
        parts = [grid[:-1, first:last].ravel() for first, last in pairwise(edges)]
        words = np.concatenate([np.empty(0), *parts]).astype(np.float32)
        held = words, edges, self.words * edges[:-1]
        at.words, at.first, at.at = (native.address(array) for array in held)
        at.parts, at.narrow = groups, groups == at.width
        return None, (*held, *place_codes(at, np.full(groups, self.bits, np.int32)))

    def reads(self, rows: int, width: int) -> Reads:
        groups, found = len(self.edges(width)) - 1, super().reads(rows, width)
        if groups == width:  # a code a column, as clustered ones are
            return replace(found, kind="clustered")
        return replace(found, vectors=groups * vectors(-(-width // max(groups, 1))))
