"""A code a value, into one codebook of numbers for the whole matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.storage.kind import FP16_MAX, Kind, Reads, RowByRow, refuse_beyond
from embedcomp.storage.kmeans import ENCODED_ROWS, SAMPLED, seen, words_of
from embedcomp.storage.packing import pack, place_codes, unpack
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

BITS = (2, 3, 4, 8)


def named(name: str, **parameters: Any) -> Kind | None:
    if not name.startswith("clustered"):
        return None
    found = re.fullmatch(r"clustered([1-9]\d*)", name)
    if found is None:
        raise _unknown(name)
    return Clustered(int(found[1]))


def _unknown(name: str) -> BadSettings:
    return BadSettings(
        f"there is no storage {name!r}; clustered values have 2, 3, 4 or 8 bits (clustered4)"
    )


def examples(rows: int, width: int) -> list[Kind]:
    return [Clustered(4)]


@dataclass(frozen=True)
class Clustered(RowByRow):
    """A row takes width * bits / 8 bytes, rounded up. The grid is float16 [words], in order.

    Source: the served form of eDKM, arXiv 2309.00964.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise _unknown(self.name)

    @property
    def name(self) -> str:
        return f"clustered{self.bits}"

    @property
    def engine(self) -> str:
        return "codebook"

    @property
    def words(self) -> int:
        return 1 << self.bits

    def row_bytes(self, width: int) -> int:
        return -(-width * self.bits // 8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(self.words, dtype=torch.float16)

    def fit(self, columns: Columns, matters: Tensor | None) -> Tensor:
        values, row_weights = columns.values, columns.weights
        refuse_beyond(FP16_MAX, values, self.name)
        rows, w = seen(values, row_weights, SAMPLED // max(values.shape[1], 1) + 1)
        even = torch.ones(values.shape[1])
        weights = w[:, None] * (even if matters is None else matters).double()
        return words_of(rows.reshape(-1, 1), weights.flatten(), self.words)[:, 0].half()

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        words = grid.float()
        middles = (words[1:] + words[:-1]) / 2
        parts = [
            pack(torch.bucketize(rows, middles, out_int32=True).to(torch.uint8), self.bits)
            for rows in values.split(ENCODED_ROWS)
        ]
        return torch.cat(parts)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        codes = unpack(stored, self.bits, width)
        return grid.float().index_select(0, codes.flatten()).view(len(stored), width)

    def moved(self, grid: Tensor, by: Tensor) -> Tensor:
        from embedcomp.storage.rounding import moved_words

        return moved_words(grid, by).sort().values  # codes are found in order

    def decoding(self, at: native.Stored, grid: np.ndarray | None) -> tuple[None, tuple[Any, ...]]:
        assert grid is not None
        edges = np.arange(at.width + 1, dtype=np.int32)
        held = grid.astype(np.float32), edges, np.zeros(at.width, np.int32)
        at.words, at.first, at.at = (native.address(array) for array in held)
        at.parts, at.narrow = at.width, 1
        return None, (*held, *place_codes(at, np.full(at.width, self.bits, np.int32)))

    def reads(self, rows: int, width: int) -> Reads:
        return replace(super().reads(rows, width), kind="clustered")
