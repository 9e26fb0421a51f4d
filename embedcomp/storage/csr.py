"""Stored rows of which few elements are kept: compressed sparse rows (CSR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedcomp.storage.columns import Columns, columns_of
from embedcomp.storage.formats import FP16_MAX, refuse_beyond
from embedcomp.storage.rows import StoredRows


class CsrRows(StoredRows):
    """A matrix [rows, width] with so many elements that are not zero.

    An element takes an fp16 value and its column (1 byte up to 256 columns, 2 beyond), a row 4
    bytes for where its elements begin. Thawed, the kept elements train and the others stay zero.
    """

    starts: Tensor
    columns: Tensor
    _kept: Tensor | None = None

    def __init__(self, rows: int, width: int, nonzeros: int):
        super().__init__(rows, width, "float16")
        self.storage = "csr"
        self.nonzeros = nonzeros
        self.stored = torch.empty(nonzeros, dtype=torch.float16)
        self.register_buffer("starts", torch.zeros(rows + 1, dtype=torch.int32))
        kind = torch.uint8 if width <= 1 << 8 else torch.int16
        self.register_buffer("columns", torch.zeros(nonzeros, dtype=kind))

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.width}, {self.nonzeros} nonzeros"

    def fill(
        self,
        weight: Tensor | Columns,
        row_weights: Tensor | None = None,
        column_weights: Tensor | None = None,
    ) -> None:
        """Store `weight` [rows, width] without all but its largest elements.

        Raises:
            CannotStore: a value is not finite in fp16.
        """
        values = columns_of(weight, row_weights).values
        refuse_beyond(FP16_MAX, values, "csr")
        kept = largest(values.abs().reshape(-1), self.nonzeros).view(values.shape)
        self.starts[1:] = kept.sum(1).cumsum(0)
        self.columns = kept.nonzero()[:, 1].to(self.columns.dtype)
        self.stored = values[kept].half()

    def gather(self, ids: Tensor) -> Tensor:
        """Rows float32 [n, width] of ids [n]; thawed, with a sparse gradient."""
        if self.master is not None:
            assert self._kept is not None
            rows = F.embedding(ids, self.master, sparse=True)
            return self._rounded(rows * self._kept.index_select(0, ids))
        first = self.starts.index_select(0, ids).long()
        lengths = self.starts.index_select(0, ids + 1).long() - first
        return self._dense(first, lengths)

    def to_float(self) -> Tensor:
        """The whole matrix, float32 [rows, width]; thawed, with a dense gradient."""
        if self.master is not None:
            assert self._kept is not None
            return self._rounded(self.master * self._kept)
        return self._dense(self.starts[:-1].long(), self.starts.diff().long())

    def _dense(self, first: Tensor, lengths: Tensor) -> Tensor:
        """Rows [n, width] whose elements begin at `first` and are so many."""
        assert self.stored is not None
        n = len(first)
        row = torch.repeat_interleave(torch.arange(n, device=first.device), lengths)
        begins = lengths.cumsum(0) - lengths
        place = torch.arange(len(row), device=row.device) + (first - begins)[row]
        column = self.columns.index_select(0, place).long()
        out = torch.zeros(n, self.width, device=first.device)
        out[row, column] = self.stored.index_select(0, place).float()
        return out

    def thaw(self) -> None:
        """Make it trainable."""
        if self.master is None:
            lengths = self.starts.diff().long()
            row = torch.repeat_interleave(torch.arange(self.rows, device=lengths.device), lengths)
            self._kept = torch.zeros(self.rows, self.width, device=row.device)
            self._kept[row, self.columns.long()] = 1
            self.master = nn.Parameter(self.to_float())
            self.stored = None

    def freeze(self) -> None:
        """Store what was trained; what is read does not change by a bit.

        Raises:
            CannotStore: training went beyond fp16.
        """
        if self.master is None or self._kept is None:
            return
        values = self.master.detach()[self._kept.bool()]
        self.format.fit(Columns(values[:, None]), None)  # refuses what does not fit
        self.stored, self.master, self._kept = values.half(), None, None


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
