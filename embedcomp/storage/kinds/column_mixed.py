"""Integers of as many bits as each column deserves; nothing is kept per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.columns import levels, shared_out
from embedcomp.storage.kind import Kind, RowByRow, State
from embedcomp.storage.packing import pack_codes, place_codes, unpack_codes
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

BITS = (6, 5, 4, 3, 2)


def named(name: str, **parameters: Any) -> Kind | None:
    return next((kind for kind in map(ColumnMixed, BITS) if kind.name == name), None)


def examples(rows: int, width: int) -> list[Kind]:
    return [ColumnMixed(bits) for bits in BITS]


@dataclass(frozen=True)
class ColumnMixed(RowByRow):
    """Unsigned codes, one after another; a row takes width * bits / 8 bytes, rounded up.

    Each bit of a row goes to the column whose weighted squared error it lowers most, which is
    reverse water-filling on measured errors. The grid is bfloat16 [3, width]: scales, offsets and
    bits.
    """

    scaled: ClassVar[bool] = True

    bits: int  # a column, on average

    @property
    def name(self) -> str:
        return f"column_mixed{self.bits}"

    @property
    def engine(self) -> str:
        return "column_mixed"

    def row_bytes(self, width: int) -> int:
        return -(-width * self.bits // 8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(3, width, dtype=torch.bfloat16)

    def fit(self, columns: Columns, matters: Tensor | None) -> Tensor:
        weights = torch.ones(columns.width) if matters is None else matters.float()
        row_bits = 8 * self.row_bytes(columns.width)
        return columns.fitted(shared_out(row_bits, weights * columns.errors(), least=1))

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        return pack_codes(values, grid, self.row_bytes(values.shape[1]))

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        return unpack_codes(stored, grid)

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        from embedcomp.storage.rounding import fake_quantised

        scale, offset, bits = state["grid"].float()
        return fake_quantised(values, scale, offset, levels(bits))

    def moved(self, grid: Tensor, by: Tensor) -> Tensor:
        from embedcomp.storage.rounding import moved_columns

        return moved_columns(grid, by)

    def decoding(
        self, at: native.Stored, grid: np.ndarray | None
    ) -> tuple[np.ndarray | None, tuple[Any, ...]]:
        assert grid is not None
        return grid[:2], place_codes(at, grid[2].astype(np.int32))
