"""Encoded rows of a log: what vocabularies and dense scales make of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bag:
    """A multi-valued column: row i holds values[offsets[i] : offsets[i + 1]]."""

    offsets: np.ndarray  # int64 [rows + 1]
    values: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def repeat(self, rows: int) -> Bag:
        """The single bag, `rows` times."""
        return self.take(np.zeros(rows, np.int64))

    def take(self, rows: np.ndarray) -> Bag:
        lengths = np.diff(self.offsets)[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        starts = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return Bag(offsets, self.values[starts + np.arange(offsets[-1])])

    def part(self, start: int, end: int) -> Bag:
        """Bags start to end, whose values are not copied."""
        offsets = self.offsets[start : end + 1]
        return Bag(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])

    @staticmethod
    def concatenate(bags: Sequence[Bag]) -> Bag:
        starts = np.cumsum([0] + [b.offsets[-1] for b in bags])
        offsets = [b.offsets[:-1] + s for b, s in zip(bags, starts[:-1], strict=True)]
        return Bag(
            np.concatenate([*offsets, starts[-1:]]), np.concatenate([b.values for b in bags])
        )


@dataclass(frozen=True)
class Rows:
    """Encoded rows of a log.

    labels: float32 [R]; dense: float32 [R, D]; single: int32 [R, S], the single-valued features'
    table rows; bags: the multi-valued features'; taught: float16 [R], a teacher's logits, or None.
    """

    labels: np.ndarray
    dense: np.ndarray
    single: np.ndarray
    bags: tuple[Bag, ...]
    taught: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Rows:
        """The rows with these numbers, int64 [n], in that order."""
        bags = tuple(bag.take(rows) for bag in self.bags)
        taught = None if self.taught is None else self.taught[rows]
        return Rows(self.labels[rows], self.dense[rows], self.single[rows], bags, taught)

    def part(self, start: int, end: int) -> Rows:
        """Rows start to end, not copied."""
        bags = tuple(bag.part(start, end) for bag in self.bags)
        cut = slice(start, end)
        taught = None if self.taught is None else self.taught[cut]
        return Rows(self.labels[cut], self.dense[cut], self.single[cut], bags, taught)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [self.labels, self.dense, self.single]
        arrays += [] if self.taught is None else [self.taught]
        arrays += [array for bag in self.bags for array in (bag.offsets, bag.values)]
        return sum(array.nbytes for array in arrays)

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        if len(parts) == 1:
            return parts[0]
        taught = [p.taught for p in parts if p.taught is not None]
        assert len(taught) in (0, len(parts)), "some rows have a teacher's logits, others have none"
        return Rows(
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.dense for p in parts]),
            np.concatenate([p.single for p in parts]),
            tuple(Bag.concatenate(bags) for bags in zip(*(p.bags for p in parts), strict=True)),
            np.concatenate(taught) if taught else None,
        )
