"""Stored rows of fewer bits the rarer they are looked up: tiers of rows that lie together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from embedcomp.storage.columns import Columns, shared_out
from embedcomp.storage.formats import pack_codes, rounded, unpack_codes
from embedcomp.storage.rows import StoredRows, straight_through


class Tiers(StoredRows, ABC):
    """A matrix [rows, width] in tiers, whose rows take a number of bits each.

    Within a tier each bit of a row goes to the column whose weighted squared error it lowers most,
    and a column without bits is its mean. The grid is bfloat16 [tiers, 3, width]: scales, offsets,
    bits.

    Args:
        ends: row after the last one of each tier.
        row_bits: of a row of each tier.
    """

    unit: ClassVar[Literal["row_bytes", "row_bits"]]  # in which a form takes the size of a row

    def __init__(self, rows: int, width: int, ends: Sequence[int], row_bits: Sequence[int]):
        super().__init__(rows, width, "float32")
        assert len(ends) == len(row_bits) and ends[-1] == rows, (ends, row_bits, rows)
        self.ends, self.row_bits = tuple(ends), tuple(row_bits)
        self.grid = torch.ones(len(self.ends), 3, width, dtype=torch.bfloat16)

    @property
    def lengths(self) -> list[int]:
        """Rows of each tier."""
        return [b - a for a, b in pairwise((0, *self.ends))]

    @property
    def tier_bytes(self) -> list[int]:
        """Bytes that the rows of each tier take."""
        return [-(-n * bits // 8) for n, bits in zip(self.lengths, self.row_bits, strict=True)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of a row of each tier, in this form's unit."""
        found: tuple[int, ...] = getattr(self, self.unit)
        return found

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.width}, {self.row_bits} bits up to rows {self.ends}"

    def _fitted(self, columns: Columns, column_weights: Tensor | None) -> Tensor:
        matters = torch.ones(self.width) if column_weights is None else column_weights.float()
        tiers = zip(columns.split(self.lengths), self.row_bits, strict=True)
        return torch.stack([self._fitted_tier(rows, bits, matters) for rows, bits in tiers])

    @abstractmethod
    def _fitted_tier(self, rows: Columns, row_bits: int, matters: Tensor) -> Tensor:
        """The grid [3, width] of a tier's rows.

        Args:
            matters: [width], how much a squared error in a column does.
        """

    def _tier(self, ids: Tensor) -> Tensor:
        return torch.bucketize(ids, torch.tensor(self.ends, device=ids.device), right=True)


class TieredRows(Tiers):
    """Rows in tiers as codes of even steps, each row in whole bytes.

    Thawed, rows train through the rounding of their tier.

    Args:
        ends: row after the last one of each tier.
        row_bytes: of a row of each tier.
    """

    unit = "row_bytes"

    def __init__(self, rows: int, width: int, ends: Sequence[int], row_bytes: Sequence[int]):
        super().__init__(rows, width, ends, [8 * size for size in row_bytes])
        self.storage, self.row_bytes = "tiered", tuple(row_bytes)
        self.stored = torch.empty(sum(self.tier_bytes), dtype=torch.uint8)

    def _fitted_tier(self, rows: Columns, row_bits: int, matters: Tensor) -> Tensor:
        return rows.fitted(shared_out(row_bits, matters * rows.errors(), least=0))

    def _encoded(self, weight: Tensor) -> Tensor:
        assert self.grid is not None
        parts = zip(weight.split(self.lengths), self.grid, self.row_bytes, strict=True)
        return torch.cat([pack_codes(rows, grid, size).flatten() for rows, grid, size in parts])

    def gather(self, ids: Tensor) -> Tensor:
        """Rows float32 [n, width] of ids [n]; thawed, with a sparse gradient."""
        if self.master is not None:
            return self._in_tiers(F.embedding(ids, self.master, sparse=True), self._tier(ids))
        tier = self._tier(ids)
        rows = torch.empty(len(ids), self.width, device=ids.device)
        for number, (first, stored) in enumerate(self._stored_tiers()):
            chosen = tier == number
            rows[chosen] = self._decoded(stored.index_select(0, ids[chosen] - first), number)
        return rows

    def to_float(self) -> Tensor:
        """The whole matrix, float32 [rows, width]; thawed, with a dense gradient."""
        if self.master is not None:
            every = torch.arange(self.rows, device=self.master.device)
            return self._in_tiers(self.master, self._tier(every))
        tiers = enumerate(self._stored_tiers())
        return torch.cat([self._decoded(stored, number) for number, (_, stored) in tiers])

    def _stored_tiers(self) -> list[tuple[int, Tensor]]:
        """The first row of each tier, and its rows uint8 [n, bytes]."""
        assert self.stored is not None
        parts = zip(self.stored.split(self.tier_bytes), self.lengths, self.row_bytes, strict=True)
        firsts = (0, *self.ends[:-1])
        return list(zip(firsts, (part.view(n, size) for part, n, size in parts), strict=True))

    def _decoded(self, stored: Tensor, tier: int) -> Tensor:
        assert self.grid is not None
        return unpack_codes(stored, self.grid[tier])

    def _in_tiers(self, values: Tensor, tier: Tensor) -> Tensor:
        """Values [n, width] as rows of these tiers are stored."""
        assert self.grid is not None
        grid = self.grid.float().index_select(0, tier).unbind(1)  # each [n, width]
        return straight_through(lambda v: rounded(v, *grid), values)
