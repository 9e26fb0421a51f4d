"""Rows of which few elements are kept: compressed sparse rows (CSR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.kind import (
    FP16_MAX,
    Kind,
    Located,
    Reads,
    State,
    refuse_beyond,
    vectors,
)
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

NAME = "csr"


def named(name: str, **parameters: Any) -> Kind | None:
    return Csr(**parameters) if name == NAME else None


def examples(rows: int, width: int) -> list[Kind]:
    return [Csr(rows * width // 2)]


@dataclass(frozen=True)
class Csr(Kind):
    """Sparse rows: a given number of elements, the largest ones, and zeros.

    An element takes an fp16 value and its column (1 byte up to 256 columns, 2 beyond), a row 4
    bytes for where its elements begin. The kept elements train and the others stay zero.
    """

    nonzeros: int

    @property
    def name(self) -> str:
        return NAME

    @property
    def parameters(self) -> dict[str, Any]:
        return {"nonzeros": self.nonzeros}

    def empty(self, rows: int, width: int) -> State:
        kind = torch.uint8 if _column_bytes(width) == 1 else torch.int16
        return {
            "stored": torch.empty(self.nonzeros, dtype=torch.float16),
            "starts": torch.zeros(rows + 1, dtype=torch.int32),
            "columns": torch.zeros(self.nonzeros, dtype=kind),
        }

    def fill(self, columns: Columns, matters: Tensor | None) -> State:
        values = columns.values
        refuse_beyond(FP16_MAX, values, NAME)
        kept = largest(values.abs().reshape(-1), self.nonzeros).view(values.shape)
        found = self.empty(*values.shape)
        found["starts"][1:] = kept.sum(1).cumsum(0)
        places = kept.nonzero()[:, 1].to(found["columns"].dtype)
        return {"stored": values[kept].half(), "starts": found["starts"], "columns": places}

    def refill(self, values: Tensor, state: State, matters: Tensor | None) -> State:
        kept = self.trainable(state, values.shape[1])
        found = values[kept.bool()]
        refuse_beyond(FP16_MAX, found, NAME)
        return {**state, "stored": found.half()}

    def read(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        starts = state["starts"]
        if ids is None:
            return _dense(state, starts[:-1].long(), starts.diff().long(), width)
        first = starts.index_select(0, ids).long()
        return _dense(state, first, starts.index_select(0, ids + 1).long() - first, width)

    def take(self, state: State, ids: Tensor, width: int) -> tuple[Kind, State]:
        starts = state["starts"].long()
        first, lengths = starts[ids], starts.diff()[ids]
        ends = lengths.cumsum(0)
        place = torch.arange(int(lengths.sum())) + (first - ends + lengths).repeat_interleave(
            lengths
        )
        taken = {name: state[name].index_select(0, place) for name in ("stored", "columns")}
        begins = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        return Csr(len(place)), {**taken, "starts": begins}

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        from embedcomp.storage.rounding import straight_through

        return straight_through(lambda v: v.half().float(), values)

    def trainable(self, state: State, width: int) -> Tensor:
        lengths = state["starts"].diff().long()
        row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        kept = torch.zeros(len(lengths), width, device=row.device)
        kept[row, state["columns"].long()] = 1
        return kept

    def located(
        self, held: Mapping[str, np.ndarray], rows: int, width: int, padding: int
    ) -> Located:
        starts, columns, values = kept = tuple(held[n] for n in ("starts", "columns", "stored"))
        at = native.Stored(
            rows=native.address(starts),
            row_bytes=starts.itemsize,
            num_ids=rows,
            kind=native.KINDS[f"csr{8 * columns.itemsize}"],
            width=width,
            padding=padding,
            last=rows - 1,
            columns=native.address(columns),
            values=native.address(values),
        )
        return Located(at, None, kept)

    def reads(self, rows: int, width: int) -> Reads:
        return Reads(
            kind=NAME,  # however wide the columns' numbers are
            numbers=self.nonzeros / max(rows, 1),
            vectors=vectors(width),
            row_bytes=4,
            stored_bytes=4 * rows + self.nonzeros * (2 + _column_bytes(width)),
        )


def _column_bytes(width: int) -> int:
    """Bytes that hold the number of a column."""
    return 1 if width <= 1 << 8 else 2


def _dense(state: State, first: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Rows [n, width] whose elements begin at `first` and are `lengths` in number."""
    n = len(first)
    row = torch.repeat_interleave(torch.arange(n, device=first.device), lengths)
    begins = lengths.cumsum(0) - lengths
    place = torch.arange(len(row), device=row.device) + (first - begins)[row]
    column = state["columns"].index_select(0, place).long()
    out = torch.zeros(n, width, device=first.device)
    out[row, column] = state["stored"].index_select(0, place).float()
    return out


def largest(values: Tensor, number: int) -> Tensor:
    """Which of these values [n] are the `number` largest, bool [n]; the first ones among equals."""
    if number >= len(values):
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    if number == 0:
        return torch.zeros(len(values), dtype=torch.bool, device=values.device)
    threshold = values.kthvalue(len(values) - number + 1).values
    above, equal = values > threshold, values == threshold
    missing = number - int(above.sum())
    return above | (equal & (equal.cumsum(0) <= missing))
