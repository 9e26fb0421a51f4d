"""Rows as codes into codebooks: product quantization, clustered values, sparse sums of atoms.

What all rows share, the `grid`, holds the codebook in 16-bit floats: those of small tables are
larger than their codes. Every row gets its nearest codes by itself, and what was encoded once is
encoded the same again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from embedcomp.kernels.bits import LARGEST, Codes
from embedcomp.storage.columns import Columns
from embedcomp.storage.formats import FP16_MAX, Format, refuse_beyond
from embedcomp.storage.kmeans import (
    SAMPLED,
    nearest,
    seen,
    words_of,
)
from embedcomp.storage.pursuit import dictionary_of, pursued, summed

CHUNK_ROWS = 1 << 16  # encoded at a time
LEAST_SCALE = 2.0**-10  # of a column that matters less than another one


def codebook_format(codes: Codes) -> Format:
    if codes.kind == "product":
        return Product(codes)
    return Clustered(codes) if codes.kind == "clustered" else SparseDictionary(codes)


@dataclass(frozen=True)
class Product:
    """Product quantization: a code for each group of columns, into the group's own codebook.

    A row takes parts * bits / 8 bytes, rounded up. The grid is [words + 1, width]: codewords, and
    how much an error in a column matters within its group (a factor of the difference).
    """

    codes: Codes

    def empty(self, rows: int, width: int) -> Tensor:
        groups = len(self.codes.edges(width)) - 1
        return torch.empty(rows, -(-groups * self.codes.bits // 8), dtype=torch.uint8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(self.codes.words + 1, width, dtype=torch.float16)

    def fit(self, columns: Columns, column_weights: Tensor | None) -> Tensor:
        weight, row_weights = columns.values, columns.weights
        refuse_beyond(FP16_MAX, weight, self.codes.name)
        grid = self.empty_grid(weight.shape[1])
        for first, last in pairwise(self.codes.edges(weight.shape[1])):
            scales = _scales(column_weights, first, last)
            words = words_of(weight[:, first:last] * scales, row_weights, self.codes.words)
            grid[:-1, first:last] = (words / scales).half()
            grid[-1, first:last] = scales.half()
        return grid

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        edges, scales = self.codes.edges(weight.shape[1]), grid[-1].float()
        words = grid[:-1].float() * scales  # [words, width]
        codes = weight.new_empty(len(weight), len(edges) - 1, dtype=torch.uint8)
        for start in range(0, len(weight), CHUNK_ROWS):
            rows = weight[start : start + CHUNK_ROWS] * scales
            for group, (first, last) in enumerate(pairwise(edges)):
                place = codes[start : start + CHUNK_ROWS, group]
                nearest(rows[:, first:last], words[:, first:last], place)
        return pack(codes, self.codes.bits)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        edges, words = self.codes.edges(width), grid[:-1].float()
        codes = unpack(stored, self.codes.bits, len(edges) - 1)
        if not width:
            return words.new_empty(len(stored), 0)
        groups = enumerate(pairwise(edges))
        return torch.cat([words[:, a:b].index_select(0, codes[:, i]) for i, (a, b) in groups], 1)


@dataclass(frozen=True)
class Clustered:
    """A code a value, into one codebook of numbers for the whole matrix.

    Source: the served form of eDKM, arXiv 2309.00964. A row takes width * bits / 8 bytes, rounded
    up. The grid is [words], in order.
    """

    codes: Codes

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, -(-width * self.codes.bits // 8), dtype=torch.uint8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(self.codes.words, dtype=torch.float16)

    def fit(self, columns: Columns, column_weights: Tensor | None) -> Tensor:
        weight, row_weights = columns.values, columns.weights
        refuse_beyond(FP16_MAX, weight, self.codes.name)
        rows, w = seen(weight, row_weights, SAMPLED // max(weight.shape[1], 1) + 1)
        even = torch.ones(weight.shape[1])
        weights = w[:, None] * (even if column_weights is None else column_weights).double()
        return words_of(rows.reshape(-1, 1), weights.flatten(), self.codes.words)[:, 0].half()

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        words = grid.float()
        middles = (words[1:] + words[:-1]) / 2
        parts = [
            pack(torch.bucketize(rows, middles, out_int32=True).to(torch.uint8), self.codes.bits)
            for rows in weight.split(CHUNK_ROWS)
        ]
        return torch.cat(parts)

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        codes = unpack(stored, self.codes.bits, width)
        return grid.float().index_select(0, codes.flatten()).view(len(stored), width)


@dataclass(frozen=True)
class SparseDictionary:
    """A row is the sum of a few atoms, each times a signed byte.

    Source: CoSpaDi, arXiv 2509.22075 (pursuit.py). A row takes two bytes an atom: the atoms'
    numbers, then their coefficients in steps of 1 / 127. The grid is [atoms + 1, width]: atoms, and
    how much an error in a column matters (a factor of the difference).
    """

    codes: Codes

    def empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, 2 * self.codes.parts, dtype=torch.uint8)

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(self.codes.words + 1, width, dtype=torch.float16)

    def fit(self, columns: Columns, column_weights: Tensor | None) -> Tensor:
        weight, row_weights = columns.values, columns.weights
        refuse_beyond(FP16_MAX, weight, self.codes.name)
        scales = _scales(column_weights, 0, weight.shape[1])
        sizes = self.codes.words, self.codes.parts
        atoms = dictionary_of(weight * scales, row_weights, *sizes) / scales
        refuse_beyond(FP16_MAX, atoms, self.codes.name)
        return torch.cat([atoms, scales[None]]).half()

    def encode(self, weight: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        scales = grid[-1].float()
        atoms = self._atoms(grid) * scales
        stored = self.empty(len(weight), weight.shape[1])
        for start in range(0, len(weight), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            which, by = pursued(weight[part] * scales, atoms, self.codes.parts, rounded=True)
            stored[part] = torch.cat([which, by.long()], 1).to(torch.uint8)
        return stored

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        count = self.codes.parts
        which, by = stored[:, :count].long(), stored[:, count:].view(torch.int8).float()
        return summed(self._atoms(grid), which, by)

    def _atoms(self, grid: Tensor) -> Tensor:
        """What one step of a coefficient adds, float32 [atoms, width]."""
        return grid[:-1].float() / LARGEST


def _scales(column_weights: Tensor | None, first: int, last: int) -> Tensor:
    """What to multiply columns by, so that their errors count as they matter; the largest is 1."""
    if column_weights is None or not column_weights[first:last].any():
        return torch.ones(last - first)
    scales = column_weights[first:last].float().sqrt()
    # as they are stored, so that fitting and encoding see the same
    return (scales / scales.max()).clamp_min(LEAST_SCALE).half().float()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [n, k] one after another, lowest bit first: [n, k * bits / 8], rounded up."""
    if bits == 8:
        return codes
    each, size = _word(bits)
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % each))
    shifts = bits * torch.arange(each, dtype=torch.int32, device=codes.device)
    whole = padded.view(len(codes), padded.shape[1] // each, each).int()
    words = (whole << shifts).sum(2, dtype=torch.int32)
    places = 8 * torch.arange(size, dtype=torch.int32, device=codes.device)
    packed = ((words[:, :, None] >> places) & 255).to(torch.uint8).flatten(1)
    return packed[:, : -(-codes.shape[1] * bits // 8)]


def unpack(stored: Tensor, bits: int, count: int) -> Tensor:
    """Codes int32 [n, count] of packed ones."""
    if bits == 8:
        return stored.int()
    each, size = _word(bits)
    padded = torch.nn.functional.pad(stored, (0, -stored.shape[1] % size))
    places = 8 * torch.arange(size, dtype=torch.int32, device=stored.device)
    whole = padded.view(len(stored), padded.shape[1] // size, size).int()
    words = (whole << places).sum(2, dtype=torch.int32)
    shifts = bits * torch.arange(each, dtype=torch.int32, device=stored.device)
    codes = (words[:, :, None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1)[:, :count]


def _word(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and how many bytes."""
    codes = 8 // math.gcd(bits, 8)
    return codes, codes * bits // 8
