"""A row is the sum of a few atoms of a dictionary, each times a signed byte."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.storage.kind import (
    FP16_MAX,
    Kind,
    Reads,
    RowByRow,
    refuse_beyond,
    vectors,
)
from embedcomp.storage.kmeans import ENCODED_ROWS, column_scales
from embedcomp.storage.pursuit import LARGEST, dictionary_of, pursued, summed
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

MOST_ATOMS = 256  # a number of one takes a byte


def named(name: str, **parameters: Any) -> Kind | None:
    if not name.startswith("sparse"):
        return None
    found = re.fullmatch(r"sparse([1-9]\d*)x([1-9]\d*)", name)
    if found is None:
        raise _unknown(name)
    return SparseDictionary(int(found[1]), int(found[2]))


def _unknown(name: str) -> BadSettings:
    return BadSettings(
        f"there is no storage {name!r}; a dictionary has at most {MOST_ATOMS} atoms, and no "
        "fewer than a row takes (sparse2x256)"
    )


def examples(rows: int, width: int) -> list[Kind]:
    return [SparseDictionary(2, 64)]


@dataclass(frozen=True)
class SparseDictionary(RowByRow):
    """A row takes two bytes an atom: the atoms' numbers, then coefficients in steps of 1 / 127.

    Source: CoSpaDi, arXiv 2509.22075 (pursuit.py). The grid is float16 [atoms + 1, width]: atoms,
    and how much an error in a column matters (a factor of the difference).
    """

    row_atoms: int
    atoms: int

    def __post_init__(self) -> None:
        if not 0 < self.row_atoms <= self.atoms <= MOST_ATOMS:
            raise _unknown(self.name)

    @property
    def name(self) -> str:
        return f"sparse{self.row_atoms}x{self.atoms}"

    @property
    def engine(self) -> str:
        return "atoms"

    def row_bytes(self, width: int) -> int:
        return 2 * self.row_atoms

    def empty_grid(self, width: int) -> Tensor:
        return torch.ones(self.atoms + 1, width, dtype=torch.float16)

    def fit(self, columns: Columns, matters: Tensor | None) -> Tensor:
        values, row_weights = columns.values, columns.weights
        refuse_beyond(FP16_MAX, values, self.name)
        scales = column_scales(matters, 0, values.shape[1])
        atoms = dictionary_of(values * scales, row_weights, self.atoms, self.row_atoms) / scales
        refuse_beyond(FP16_MAX, atoms, self.name)
        return torch.cat([atoms, scales[None]]).half()

    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        assert grid is not None
        scales = grid[-1].float()
        atoms = _steps(grid) * scales
        stored = self.empty_rows(len(values), values.shape[1])
        for start in range(0, len(values), ENCODED_ROWS):
            part = slice(start, start + ENCODED_ROWS)
            which, by = pursued(values[part] * scales, atoms, self.row_atoms, rounded=True)
            stored[part] = torch.cat([which, by.long()], 1).to(torch.uint8)
        return stored

    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        assert grid is not None
        count = self.row_atoms
        which, by = stored[:, :count].long(), stored[:, count:].view(torch.int8).float()
        return summed(_steps(grid), which, by)

    def moved(self, grid: Tensor, by: Tensor) -> Tensor:
        from embedcomp.storage.rounding import moved_words

        return torch.cat([moved_words(grid[:-1], by[:-1]), grid[-1:].float()])

    def decoding(self, at: native.Stored, grid: np.ndarray | None) -> tuple[None, tuple[Any, ...]]:
        assert grid is not None
        atoms = np.zeros((MOST_ATOMS, at.width), np.float32)  # whatever a byte names is there
        atoms[: self.atoms] = grid[:-1] / np.float32(LARGEST)
        at.words, at.parts = native.address(atoms), self.row_atoms
        return None, (atoms,)

    def reads(self, rows: int, width: int) -> Reads:
        return replace(super().reads(rows, width), vectors=self.row_atoms * vectors(width))


def _steps(grid: Tensor) -> Tensor:
    """What one step of a coefficient adds, float32 [atoms, width]."""
    return grid[:-1].float() / LARGEST
