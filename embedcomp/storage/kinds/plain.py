"""Floats as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from embedcomp.storage.kind import FP16_MAX, Kind, RowByRow, State, refuse_beyond
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def named(name: str, **parameters: Any) -> Kind | None:
    return Plain(name) if name in BYTES else None


def examples(rows: int, width: int) -> list[Kind]:
    return [Plain(name) for name in BYTES]


@dataclass(frozen=True)
class Plain(RowByRow):
    """Floats of one type; a linear layer of bfloat16 multiplies in it."""

    nested: ClassVar[bool] = True

    type: str

    @property
    def name(self) -> str:
        return self.type

    @property
    def precision(self) -> str:
        return "bfloat16" if self.type == "bfloat16" else "float32"

    def row_bytes(self, width: int) -> int:
        return BYTES[self.type] * width

    def empty_rows(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=getattr(torch, self.type))

    def fit(self, columns: Columns, matters: Tensor | None) -> None:
        if self.type == "float16":
            refuse_beyond(FP16_MAX, columns.values, self.type)

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        return values.to(getattr(torch, self.type))

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        return stored.float()

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        return values if self.type == "float32" else super().rounded(values, state, ids)
