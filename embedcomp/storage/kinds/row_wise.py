"""Integers with a scale and an offset a row, as fbgemm stores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcomp.storage.kind import FP16_MAX, Kind, RowByRow, refuse_beyond
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

BITS = (8, 4, 2)


def named(name: str, **parameters: Any) -> Kind | None:
    return next((kind for kind in map(RowWise, BITS) if kind.name == name), None)


def examples(rows: int, width: int) -> list[Kind]:
    return [RowWise(bits) for bits in BITS]


@dataclass(frozen=True)
class RowWise(RowByRow):
    """fbgemm's rows: codes, then fp16 scale and bias: d + 4 bytes in 8 bits, d/2 + 4, d/4 + 4.

    fbgemm takes widths of whole 16-bit words only; a narrower row repeats its last column, which
    leaves its range as it is.
    """

    bits: int

    @property
    def name(self) -> str:
        return f"row_int{self.bits}"

    def _padded(self, width: int) -> int:
        step = 16 // self.bits
        return -(-width // step) * step

    def row_bytes(self, width: int) -> int:
        assert width > 0, "a row without columns has no scale"
        return self._padded(width) * self.bits // 8 + 4

    def fit(self, columns: Columns, matters: Tensor | None) -> None:
        refuse_beyond(FP16_MAX, columns.values, self.name)  # the smallest of a row is in fp16

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        missing = self._padded(values.shape[1]) - values.shape[1]
        if not len(values):
            return self.empty_rows(0, values.shape[1])
        padded = torch.cat([values, values[:, -1:].expand(-1, missing)], 1)
        return _fbgemm().FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(padded, self.bits)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        if not len(stored):
            return torch.empty(0, width)
        rows = _fbgemm().FusedNBitRowwiseQuantizedSBHalfToFloatOrHalf(stored, self.bits, 0)
        return rows[:, :width].contiguous()


def _fbgemm() -> Any:
    """fbgemm's operators, which are registered by its import."""
    import fbgemm_gpu  # noqa: F401

    return torch.ops.fbgemm
