"""Rows in tiers as codes of even steps, each row in whole bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.columns import levels, shared_out
from embedcomp.storage.kind import Kind, State
from embedcomp.storage.packing import pack_codes, place_codes, unpack_codes
from embedcomp.storage.tiers import Tiers
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

NAME = "tiered"


def named(name: str, **parameters: Any) -> Kind | None:
    return Tiered(**parameters) if name == NAME else None


def examples(rows: int, width: int) -> list[Kind]:
    return [Tiered((rows // 2, rows), (width, -(-width // 2)))]


@dataclass(frozen=True)
class Tiered(Tiers):
    """row_bytes: of a row of each tier. Trained rows are rounded as their tier is."""

    unit: ClassVar[Literal["row_bytes"]] = "row_bytes"
    grows_by: ClassVar[int] = 8

    row_bytes: tuple[int, ...]

    @property
    def name(self) -> str:
        return NAME

    @property
    def bits_of_rows(self) -> tuple[int, ...]:
        return tuple(8 * size for size in self.row_bytes)

    def errors(self, rows: Columns) -> Tensor:
        return rows.errors()

    def fitted(self, rows: Columns, row_bits: int, matters: Tensor) -> Tensor:
        return rows.fitted(shared_out(row_bits, matters * self.errors(rows), least=0))

    def encode(self, values: Tensor, grid: Tensor, matters: Tensor | None) -> Tensor:
        parts = zip(values.split(self.lengths), grid, self.row_bytes, strict=True)
        return torch.cat([pack_codes(rows, own, size).flatten() for rows, own, size in parts])

    def read(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        tiers, grid = enumerate(self._tiers(state["stored"])), state["grid"]
        if ids is None:
            return torch.cat([unpack_codes(rows, grid[number]) for number, (_, rows) in tiers])
        tier = self.tier_of(ids)
        found = torch.empty(len(ids), width, device=ids.device)
        for number, (first, rows) in tiers:
            chosen = tier == number
            found[chosen] = unpack_codes(rows.index_select(0, ids[chosen] - first), grid[number])
        return found

    def take(self, state: State, ids: Tensor, width: int) -> tuple[Kind, State]:
        tier = self.tier_of(ids)
        parts = [
            rows.index_select(0, ids[tier == number] - first).flatten()
            for number, (first, rows) in enumerate(self._tiers(state["stored"]))
        ]
        return replace(self, ends=self.taken_ends(ids)), {**state, "stored": torch.cat(parts)}

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        from embedcomp.storage.rounding import fake_quantised

        every = torch.arange(self.ends[-1], device=values.device)
        tier = self.tier_of(every if ids is None else ids)
        scale, offset, bits = state["grid"].float().index_select(0, tier).unbind(1)
        return fake_quantised(values, scale, offset, levels(bits))

    def _tiers(self, stored: Tensor) -> list[tuple[int, Tensor]]:
        """The first row of each tier, and its rows uint8 [n, bytes]."""
        parts = zip(stored.split(self.tier_bytes), self.lengths, self.row_bytes, strict=True)
        firsts = (0, *self.ends[:-1])
        return list(zip(firsts, (part.view(n, size) for part, n, size in parts), strict=True))

    def place(self, tier: native.Stored, place: int, grid: np.ndarray) -> tuple[Any, ...]:
        grid, row_bytes = grid[place], self.row_bytes[place]
        bits = grid[2].astype(np.int32)
        counts = 1 << bits
        codes = np.concatenate([np.arange(count, dtype=np.float32) for count in counts])
        words = codes * np.repeat(grid[0], counts) + np.repeat(grid[1], counts)
        starts = (counts.cumsum() - counts).astype(np.int32)
        tier.words, tier.at, tier.parts = native.address(words), native.address(starts), len(bits)
        tier.row_bytes, tier.narrow = row_bytes, 1
        if not row_bytes:  # nothing is read of such a row, but its first byte
            tier.rows = native.address(words)
        held = place_codes(tier, bits)
        held[0][bits == 0] = 0  # which may lie beyond the row
        return words, starts, *held
