"""Integers with a scale and an offset a column; nothing is kept per row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.columns import nearest_codes, shortened
from embedcomp.storage.kind import Kind, Reads, RowByRow, State
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

BITS = (8, 4)


def named(name: str, **parameters: Any) -> Kind | None:
    return next((kind for kind in map(ColumnWise, BITS) if kind.name == name), None)


def examples(rows: int, width: int) -> list[Kind]:
    return [ColumnWise(bits) for bits in BITS]


@dataclass(frozen=True)
class ColumnWise(RowByRow):
    """Unsigned codes; a row takes `width` bytes (8 bits) or half of that, rounded up (4 bits).

    The grid is bfloat16 [2, width]: scales, then offsets.
    """

    scaled: ClassVar[bool] = True
    nested: ClassVar[bool] = True

    bits: int

    @property
    def name(self) -> str:
        return f"column_int{self.bits}"

    @property
    def levels(self) -> int:
        """Steps between the lowest and the highest code."""
        return (1 << self.bits) - 1

    def row_bytes(self, width: int) -> int:
        return -(-width * self.bits // 8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(2, width, dtype=torch.bfloat16)

    def fit(self, columns: Columns, matters: Tensor | None) -> Tensor:
        return shortened(columns.grid(self.levels), self.levels)

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        codes = nearest_codes(values, grid.float(), self.levels).to(torch.uint8)
        if self.bits == 8:
            return codes
        if codes.shape[1] % 2:
            codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], 1)
        return codes[:, ::2] | (codes[:, 1::2] << 4)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        if self.bits == 4:
            stored = torch.stack([stored & 15, stored >> 4], -1).flatten(1)[:, :width]
        scale, offset = grid.float()
        return stored.float() * scale + offset

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        from embedcomp.storage.rounding import fake_quantised

        scale, offset = state["grid"].float()
        return fake_quantised(values, scale, offset, scale.new_tensor(self.levels))

    def moved(self, grid: Tensor, by: Tensor) -> Tensor:
        from embedcomp.storage.rounding import moved_columns

        return moved_columns(grid, by)

    def decoding(
        self, at: native.Stored, grid: np.ndarray | None
    ) -> tuple[np.ndarray | None, tuple[Any, ...]]:
        return grid, ()

    def reads(self, rows: int, width: int) -> Reads:
        found = super().reads(rows, width)
        if self.bits == 8 and width == native.VECTOR:
            return replace(found, kind="column_int8 16")  # for which the kernels have a loop
        return found
