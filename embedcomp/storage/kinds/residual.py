"""Rows in tiers as sums of words: a code into each of some codebooks, fewer the rarer a row is.

Source: residual vector quantization (Juang and Gray, ICASSP 1982), whose codes of fewer codebooks
are the first ones of those of more, so that rows of all lengths read the same codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.storage import additive
from embedcomp.storage.kind import FP16_MAX, Kind, Reads, State, refuse_beyond, vectors
from embedcomp.storage.kmeans import column_scales, means
from embedcomp.storage.probes import hashed
from embedcomp.storage.tiers import InTiers
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

NAME = "residual"
MOST_BITS = 12  # of a code, which then lies in three bytes at most


def named(name: str, **parameters: Any) -> Kind | None:
    return Residual(**parameters) if name == NAME else None


def examples(rows: int, width: int) -> list[Kind]:
    return []  # the engine adds words as it does those of product.py


@dataclass(frozen=True)
class Residual(InTiers):
    """A row is what its tier begins with and a word for each of its codes.

    Rows lie one after another without a gap within a tier. The grid is float16 [tiers + words of
    all codebooks, width]: what each tier begins with, then the codebooks. Words lose least if an
    error in a column counts as `fill` was told.

    stages: codes of a row of each tier.
    bits: of the code into each codebook.
    """

    unit: ClassVar[Literal["stages"]] = "stages"
    engine: ClassVar[str] = "residual"
    together: ClassVar[bool] = True

    stages: tuple[int, ...]
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        allowed = all(1 <= bits <= MOST_BITS for bits in self.bits)
        if not allowed or max(self.stages) != len(self.bits) or len(self.stages) != len(self.ends):
            raise BadSettings(
                f"rows have up to {max(self.stages)} codes in {len(self.ends)} tiers, of "
                f"{self.bits} bits; give the codes of each tier and 1 to {MOST_BITS} bits for "
                "each codebook"
            )

    @property
    def name(self) -> str:
        return NAME

    @property
    def bits_of_rows(self) -> tuple[int, ...]:
        return tuple(sum(self.bits[:number]) for number in self.stages)

    @property
    def starts(self) -> list[int]:
        """The first row of each codebook in the grid, and the grid's end."""
        return [*accumulate((1 << bits for bits in self.bits), initial=len(self.ends))]

    def empty(self, rows: int, width: int) -> State:
        assert self.ends[-1] == rows, (self, rows)
        return {
            "stored": torch.empty(sum(self.tier_bytes), dtype=torch.uint8),
            "grid": torch.ones(self.starts[-1], width, dtype=torch.float16),
        }

    def fill(self, columns: Columns, matters: Tensor | None) -> State:
        values = columns.values.contiguous()
        refuse_beyond(FP16_MAX, values, self.name)
        scales = column_scales(matters, 0, values.shape[1])
        weights = columns.weights
        if weights is None or not weights.any():
            weights = torch.ones(len(values))
        tier = self.tier_of(torch.arange(len(values)))
        begins = _means(values, weights.double(), tier, len(self.ends))
        rows = (values - begins[tier]) * scales
        codes = torch.tensor(self.stages)[tier]
        words = additive.fitted(rows, weights, codes, [1 << bits for bits in self.bits])
        grid = torch.cat([begins, *(own / scales for own in words)])
        refuse_beyond(FP16_MAX, grid, self.name)
        return self.refill(values, {"grid": grid.half()}, matters)

    def refill(self, values: Tensor, state: State, matters: Tensor | None) -> State:
        scales = column_scales(matters, 0, values.shape[1]).to(values.device)
        return {"stored": self.encode(values, state["grid"], scales.diag()), "grid": state["grid"]}

    def encode(
        self, values: Tensor, grid: Tensor, root: Tensor, stored: Tensor | None = None
    ) -> Tensor:
        """All rows as bytes, whose sums come near to values [rows, width].

        Args:
            root: [width, l], after which errors in all directions count the same.
            stored: as they are; a row that does not come nearer stays.
        """
        known = None if stored is None else self.codes(stored)
        codes = torch.zeros(len(values), len(self.bits), dtype=torch.int64, device=values.device)
        grid = grid.float()
        words = [grid[first:last] @ root for first, last in pairwise(self.starts)]
        for begin, number, (first, last) in zip(
            grid, self.stages, pairwise((0, *self.ends)), strict=False
        ):
            rows, part = (values[first:last] - begin) @ root, slice(first, last)
            own = None if known is None else known[part, :number]
            codes[part, :number] = additive.encoded(rows, words[:number], own)
        return self.packed(codes)

    def drawn(self, deviations: Tensor, generator: torch.Generator) -> State:
        """Tensors of words that are drawn, so that rows of most codes deviate so, and any codes.

        Args:
            deviations: [width].
        """
        shape = self.starts[-1], len(deviations)
        words = torch.randn(shape, generator=generator) * deviations / len(self.bits) ** 0.5
        words[: len(self.ends)] = 0
        ids = torch.arange(self.ends[-1])
        probes = (hashed(len(ids), 1 << bits, salt=place) for place, bits in enumerate(self.bits))
        codes = torch.stack([probe.places(ids) for probe in probes], 1)
        return {"stored": self.packed(codes), "grid": words.half()}

    def packed(self, codes: Tensor) -> Tensor:
        """Codes int64 [rows, codebooks] as bytes; a row's codes beyond its own do not count."""
        out = []
        for number, (first, last) in zip(self.stages, pairwise((0, *self.ends)), strict=True):
            own = codes[first:last, :number].cpu().numpy()
            each = zip(own.T, self.bits, strict=False)
            ones = [(code[:, None] >> np.arange(bits)) & 1 for code, bits in each]
            flat = np.concatenate([*ones, np.empty((len(own), 0), np.int64)], 1).ravel()
            out.append(np.packbits(flat.astype(np.uint8), bitorder="little"))
        return torch.from_numpy(np.concatenate(out)).to(codes.device)

    def codes(self, stored: Tensor, ids: Tensor | None = None) -> Tensor:
        """Codes int64 [n, codebooks] of ids [n], or of all; 0 beyond those that a row has."""
        ids = torch.arange(self.ends[-1], device=stored.device) if ids is None else ids
        tier = self.tier_of(ids)
        first, start, size, number = self._places(stored.device)[tier].unbind(1)  # each [n]
        begins = torch.tensor([*accumulate(self.bits, initial=0)][:-1], device=stored.device)
        masks = torch.tensor([(1 << bits) - 1 for bits in self.bits], device=stored.device)
        at = (start + (ids - first) * size)[:, None] + begins  # [n, codebooks], bits
        word = torch.zeros_like(at)
        for more in range(3):
            byte = (at // 8 + more).clamp_max(len(stored) - 1)  # what lies beyond does not count
            word |= stored[byte].long() << 8 * more
        has = torch.arange(len(self.bits), device=stored.device) < number[:, None]
        return ((word >> at % 8) & masks) * has

    def _places(self, device: Any) -> Tensor:
        """By tier [tiers, 4]: its first row and bit, the bits of a row and its codes."""
        firsts, starts = (0, *self.ends[:-1]), accumulate(self.tier_bytes, initial=0)
        bits = (8 * start for start in starts)
        found = zip(firsts, bits, self.bits_of_rows, self.stages, strict=False)
        return torch.tensor(list(found), device=device)

    def read(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        grid, stored = state["grid"].float(), state["stored"]
        ids = torch.arange(self.ends[-1], device=stored.device) if ids is None else ids
        tier, codes = self.tier_of(ids), self.codes(stored, ids)
        number = torch.tensor(self.stages, device=stored.device)[tier]
        found = grid.index_select(0, tier)
        for place, (first, code) in enumerate(zip(self.starts, codes.unbind(1), strict=False)):
            found = found + grid.index_select(0, first + code) * (number > place)[:, None]
        return found

    def take(self, state: State, ids: Tensor, width: int) -> tuple[Kind, State]:
        taken = replace(self, ends=self.taken_ends(ids))
        return taken, {**state, "stored": taken.packed(self.codes(state["stored"], ids))}

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        return self.read(state, values.shape[1], ids)  # as all rows were encoded last

    def place(self, tier: native.Stored, place: int, grid: np.ndarray) -> tuple[Any, ...]:
        number, bits = self.stages[place], np.array(self.bits, np.int32)
        words = np.ascontiguousarray(grid)
        at = np.array([place, *self.starts[:-1]], np.int32) * np.int32(tier.width)
        starts, masks = (bits.cumsum() - bits).astype(np.int32), (1 << bits) - 1
        tier.words, tier.at, tier.bit, tier.mask = map(native.address, (words, at, starts, masks))
        tier.parts, tier.row_bits = number, self.bits_of_rows[place]
        tier.row_bytes = tier.row_bits // 8 + 1 if number else 0
        if not number:  # nothing is read of such a row
            tier.rows = native.address(words)
        return words, at, starts, masks

    def reads(self, rows: int, width: int) -> Reads:
        codes: Sequence[int] = [n * k for n, k in zip(self.lengths, self.stages, strict=True)]
        size = -(-sum(self.tier_bytes) // max(rows, 1))  # of a mean row
        return Reads(
            kind="codebook",
            numbers=width,
            vectors=max(1, round(sum(codes) / max(rows, 1))) * vectors(width),
            row_bytes=size,
            stored_bytes=rows * size,
        )


def _means(rows: Tensor, weights: Tensor, of: Tensor, count: int) -> Tensor:
    """Weighted means float32 [count, k]; of rows that weigh nothing, their plain mean."""
    heavy = torch.zeros(count).double().index_add_(0, of, weights)
    weights = torch.where(heavy[of] > 0, weights, 1.0)
    return means(rows, weights, of, torch.zeros(count, rows.shape[1]))
