"""What kinds have in common whose rows have fewer bits the rarer they are looked up."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.kind import Kind, Located, Reads, State, as_floats, vectors
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns


@dataclass(frozen=True)
class InTiers(Kind):
    """Rows in order of count, in tiers whose rows take a number of bits each.

    ends: row after the last one of each tier.
    """

    unit: ClassVar[Literal["row_bytes", "row_bits", "stages"]]  # in which a kind takes a row's size
    engine: ClassVar[str] = "codebook"  # kind of a tier's rows in native.KINDS

    ends: tuple[int, ...]

    @property
    @abstractmethod
    def bits_of_rows(self) -> tuple[int, ...]:
        """Bits of one row of each tier."""

    @property
    def parameters(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def lengths(self) -> list[int]:
        """Rows of each tier."""
        return [b - a for a, b in pairwise((0, *self.ends))]

    @property
    def tier_bytes(self) -> list[int]:
        """Bytes that the rows of each tier take."""
        return [-(-n * b // 8) for n, b in zip(self.lengths, self.bits_of_rows, strict=True)]

    def tier_of(self, ids: Tensor) -> Tensor:
        return torch.bucketize(ids, torch.tensor(self.ends, device=ids.device), right=True)

    def taken_ends(self, ids: Tensor) -> tuple[int, ...]:
        """Row after the last one of each tier, of some rows, which are ascending."""
        ends = torch.tensor(self.ends, device=ids.device)
        return tuple(torch.searchsorted(ids, ends).tolist())

    def located(
        self, held: Mapping[str, np.ndarray], rows: int, width: int, padding: int
    ) -> Located:
        stored, grid = held["stored"], as_floats(held["grid"])
        tiers = (native.Stored * len(self.ends))()
        kept: tuple[Any, ...] = (stored, tiers)
        for place, (tier, at) in enumerate(zip(tiers, self._places_of(stored), strict=True)):
            first, last = (0, *self.ends)[place : place + 2]
            tier.rows, tier.num_ids, tier.last = at, last - first, last
            tier.kind, tier.width, tier.padding = native.KINDS[self.engine], width, -1
            kept += self.place(tier, place, grid)
        return self._tiered(tiers, kept, rows, width, padding)

    def located_like(
        self, like: Located, held: Mapping[str, np.ndarray], rows: int, width: int
    ) -> Located:
        stored, tiers = held["stored"], (native.Stored * len(self.ends))()
        others = (native.Stored * len(self.ends)).from_address(like.rows.tiers)
        ctypes.memmove(tiers, others, ctypes.sizeof(tiers))
        for place, (tier, at) in enumerate(zip(tiers, self._places_of(stored), strict=True)):
            first, last = (0, *self.ends)[place : place + 2]
            tier.num_ids, tier.last = last - first, last
            if tier.row_bytes:  # else nothing is read of such a row
                tier.rows = at
        return self._tiered(tiers, (stored, tiers, like), rows, width, -1)

    def _places_of(self, stored: np.ndarray) -> list[int]:
        """Where the rows of each tier begin."""
        return [*accumulate(self.tier_bytes[:-1], initial=native.address(stored))]

    def _tiered(
        self,
        tiers: ctypes.Array[native.Stored],
        kept: tuple[Any, ...],
        rows: int,
        width: int,
        padding: int,
    ) -> Located:
        stored: np.ndarray = kept[0]
        tiered = native.Stored(
            rows=native.address(stored),
            row_bytes=1,
            num_ids=rows,
            kind=native.KINDS["tiered"],
            width=width,
            padding=padding,
            last=rows - 1,
            tiers=ctypes.addressof(tiers),
        )
        return Located(tiered, None, kept)

    @abstractmethod
    def place(self, tier: native.Stored, place: int, grid: np.ndarray) -> tuple[Any, ...]:
        """Say what each code of a tier's rows stands for; gives what must be kept.

        Args:
            grid: float32, of all tiers.
        """

    def reads(self, rows: int, width: int) -> Reads:
        size = -(-sum(self.tier_bytes) // max(rows, 1))  # of a mean row
        return Reads(
            kind="tiered",
            numbers=width,
            vectors=vectors(width),
            row_bytes=size,
            stored_bytes=rows * size,
        )


@dataclass(frozen=True)
class Tiers(InTiers):
    """Rows of codes of single columns.

    Within a tier each bit of a row goes to the column whose weighted squared error it lowers most,
    and a column without bits is its mean. The grid is bfloat16 [tiers, 3, width]: scales, offsets,
    bits.

    grows_by: bits that a row takes more of the kind's unit.
    """

    grows_by: ClassVar[int]

    @property
    def padding_bytes(self) -> int:
        """Bytes around all rows."""
        return 0

    def empty(self, rows: int, width: int) -> State:
        assert len(self.ends) == len(self.bits_of_rows) and self.ends[-1] == rows, (self, rows)
        size = sum(self.tier_bytes) + self.padding_bytes
        # bits as if all columns had as many, which says how large codebooks are
        bits = [row // max(width, 1) for row in self.bits_of_rows]
        grid = [[[1] * width, [1] * width, [number] * width] for number in bits]
        return {
            "stored": torch.empty(size, dtype=torch.uint8),
            "grid": torch.tensor(grid, dtype=torch.bfloat16),
        }

    def fill(self, columns: Columns, matters: Tensor | None) -> State:
        even = torch.ones(columns.width) if matters is None else matters.float()
        tiers = zip(columns.split(self.lengths), self.bits_of_rows, strict=True)
        grid = torch.stack([self.fitted(rows, bits, even) for rows, bits in tiers])
        return self.refill(columns.values.contiguous(), {"grid": grid}, matters)

    def refill(self, values: Tensor, state: State, matters: Tensor | None) -> State:
        grid = state["grid"]
        return {"stored": self.encode(values, grid, matters), "grid": grid}

    def moved(self, grid: Tensor, by: Tensor) -> Tensor:
        from embedcomp.storage.rounding import moved_columns

        return moved_columns(grid, by)

    @abstractmethod
    def errors(self, rows: Columns) -> Tensor:
        """Weighted squared errors foreseen of a tier's columns with 0, 1, 2, ... bits.

        Returns:
            float32 [MOST_BITS + 1, width].
        """

    @abstractmethod
    def fitted(self, rows: Columns, row_bits: int, matters: Tensor) -> Tensor:
        """The grid [3, width] of a tier's rows.

        Args:
            matters: [width], how much a squared error in a column does.
        """

    @abstractmethod
    def encode(self, values: Tensor, grid: Tensor, matters: Tensor | None) -> Tensor:
        """All rows as bytes."""
