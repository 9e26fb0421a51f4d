"""Signed bytes with a scale a row, as an integer product wants the weights of one output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcomp.storage.kind import FP16_MAX, Kind, RowByRow, refuse_beyond
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

NAME = "symmetric_int8"


def named(name: str, **parameters: Any) -> Kind | None:
    return Symmetric() if name == NAME else None


def examples(rows: int, width: int) -> list[Kind]:
    return [Symmetric()]


@dataclass(frozen=True)
class Symmetric(RowByRow):
    """Signed bytes, then an fp16 scale: width + 2 bytes a row, and 0 stays 0."""

    @property
    def name(self) -> str:
        return NAME

    @property
    def precision(self) -> str:
        return "int8"

    def row_bytes(self, width: int) -> int:
        return width + 2

    def fit(self, columns: Columns, matters: Tensor | None) -> None:
        refuse_beyond(127 * FP16_MAX, columns.values, NAME)

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        largest = values.abs().amax(1, keepdim=True) if values.shape[1] else values.new_zeros(1, 1)
        scale = (largest / 127).half()
        scale = torch.where(scale > 0, scale, 1.0).expand(len(values), 1)
        codes = (values / scale.float()).round_().clamp_(-127, 127).to(torch.int8)
        return torch.cat([codes.view(torch.uint8), scale.contiguous().view(torch.uint8)], 1)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        scale = stored[:, width:].clone(memory_format=torch.contiguous_format)  # aligned
        return stored[:, :width].view(torch.int8).float() * scale.view(torch.float16).float()
