"""Probes: formulas that say which stored rows an id reads, where it reads several or shares them.

Nothing of them is stored but their description. Scoring needs no torch, which is imported when rows
are computed with it; kernels/engine.cpp (`probed_row`) has the same formulas.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from ctypes import addressof
from dataclasses import asdict, dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from embedcomp.kernels import native
from embedcomp.storage.kind import Reads
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Combine = Literal["concat", "add", "multiply"]  # beside each other, summed, or multiplied

MOST_BITS = (1 << 64) - 1
MOST_ROWS = 1 << 31  # a hash's half is a share of fewer, so that 64 bits hold the product


@dataclass(frozen=True, kw_only=True)
class Probe(ABC):
    """Reads one of `rows` stored rows, from row `start` on, for an id.

    kind: its name in an artifact and in native.PROBES.
    """

    kind: ClassVar[str]

    rows: int
    start: int = 0

    def __post_init__(self) -> None:
        assert 0 < self.rows < MOST_ROWS and self.start >= 0, self

    @abstractmethod
    def places(self, ids: Tensor) -> Tensor:
        """Which of the rows ids int64 [n] read, each from 0 to rows - 1."""

    @property
    def described(self) -> dict[str, Any]:
        """What an artifact says of it."""
        return {"kind": self.kind, **asdict(self)}

    @property
    def told(self) -> native.Probe:
        """What the engine is told of it; it multiplies by what it would divide by."""
        found = native.Probe(kind=native.PROBES.index(self.kind), **asdict(self))
        found.per_row = MOST_BITS // self.rows
        found.per_divisor = MOST_BITS // max(found.divisor, 1)
        return found


@dataclass(frozen=True, kw_only=True)
class Digit(Probe):
    """Row id // divisor % rows: a digit of the id in a mixed base.

    With divisor c and all rows that this takes, the quotient of the quotient-remainder trick (Shi
    et al., KDD 2020); with divisor 1 and c rows, the remainder; with divisor 1 and as many rows as
    ids, the id itself.
    """

    kind = "digit"

    divisor: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.divisor > 0, self

    def places(self, ids: Tensor) -> Tensor:
        return ids // self.divisor % self.rows


@dataclass(frozen=True, kw_only=True)
class Hash(Probe):
    """A row by splitmix64 of the id and a salt; `hashed` is the way to one.

    The upper 32 bits of splitmix64(id + salt * 2^32) are a share of the rows: times rows, without
    the lower 32 bits of the product (Lemire, ACM TOMACS 29, 2019), which needs no division.

    Args:
        salt: below 2^31; hashes of different ones have nothing in common.
    """

    kind = "hash"

    salt: int

    def __post_init__(self) -> None:
        super().__post_init__()
        assert 0 <= self.salt < 1 << 31, self

    def places(self, ids: Tensor) -> Tensor:
        return _share(_upper(splitmix64(ids + (self.salt << 32))), self.rows)


@dataclass(frozen=True, kw_only=True)
class Permuted(Probe):
    """A row by a permutation of each partition of all that is read (STABLE-RPS, arXiv 2310.11611).

    What the tables of a pool read is numbered one after another: id i of this table is number
    g = first + stride * i. Each `rows` numbers are a partition p = g // rows, whose number x reads
    row (a_p x + b_p) % rows, for a prime number of rows. So every row is read by as many numbers
    as any other, or one more. Partition 0 is as it comes: with as many rows as numbers, each has
    its own. Of the others, a_p - 1 is what the upper 32 bits of splitmix64(p + salt * 2^32) are a
    share of rows - 1, and b_p what the lower ones are of rows.

    Args:
        first: number of id 0.
        stride: numbers from one id to the next: as many as there are probes.
        salt: below 2^31.
    """

    kind = "permuted"

    first: int = 0
    stride: int = 1
    salt: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.first >= 0 and self.stride > 0 and 0 <= self.salt < 1 << 31, self
        assert is_prime(self.rows), f"{self.rows} rows of a permutation are no prime number"

    def places(self, ids: Tensor) -> Tensor:
        number = self.first + self.stride * ids
        partition, place = number // self.rows, number % self.rows
        drawn = splitmix64(partition + (self.salt << 32))
        times = 1 + _share(_upper(drawn), self.rows - 1)
        moved = (times * place + _share(drawn & 0xFFFFFFFF, self.rows)) % self.rows
        return torch.where(partition == 0, place, moved)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What an id of a table reads: a stored row by each probe, and how they become one.

    own: ids below have rows of their own and read no others: from `own_start` on, as many one after
        another as there are probes if these are concatenated, else a single one. The ids after them
        are numbered from 0 for the probes.
    """

    probes: tuple[Probe, ...]
    combine: Combine = "concat"
    own: int = 0
    own_start: int = 0

    def __post_init__(self) -> None:
        assert self.probes and self.combine in get_args(Combine), self
        assert self.own >= 0 and self.own_start >= 0, self

    @property
    def mixes(self) -> bool:
        """Whether numbers of several rows become one number."""
        return self.combine != "concat"

    @property
    def own_rows(self) -> int:
        """Rows of their own that an id of the prefix has."""
        return 1 if self.mixes else len(self.probes)

    @property
    def end(self) -> int:
        """Row after the last one that can be read."""
        ends = [probe.start + probe.rows for probe in self.probes]
        return max(*ends, self.own_start + self.own * self.own_rows)

    def width(self, stored: int) -> int:
        """Numbers of what an id reads, of stored rows with so many."""
        return stored if self.mixes else stored * len(self.probes)

    def rows(self, ids: Tensor) -> Tensor:
        """Stored rows int64 [n, probes] of ids [n]; one of the prefix may have the same in all."""
        ids = ids.long()
        after = (ids - self.own).clamp_min(0)
        found = torch.stack([probe.start + probe.places(after) for probe in self.probes], 1)
        if not self.own:
            return found
        each = torch.arange(len(self.probes), device=ids.device) * (not self.mixes)
        own = self.own_start + ids[:, None] * self.own_rows + each
        return torch.where((ids < self.own)[:, None], own, found)

    def reads(self, stored: Reads, scaled: bool) -> Reads:
        """Work of what an id reads, given that of a stored row.

        Args:
            scaled: the engine reads whole numbers.
        """
        mixed = self.combine == "multiply" or (self.mixes and scaled)
        return replace(stored, index="probed", rows=len(self.probes), mixed=mixed)

    def place(
        self, at: native.Stored, grid: np.ndarray | None
    ) -> tuple[np.ndarray | None, tuple[Any, ...]]:
        """Say in `at` what an id reads.

        Args:
            grid: float32 [2, width], scales and offsets of stored rows that are whole numbers.

        Returns:
            Scales and offsets of what is looked up, where that is whole numbers, and what must be
            kept. Rows that are mixed become numbers first, since an offset counts for each.
        """
        probes = (native.Probe * len(self.probes))(*(probe.told for probe in self.probes))
        at.probes, at.probe_count = addressof(probes), len(probes)
        at.combine = native.COMBINES.index(self.combine)
        at.own, at.own_start = self.own, self.own_start
        if grid is None or not self.mixes:
            return None if grid is None else np.tile(grid, len(probes)), (probes,)
        at.grid = native.address(grid)
        return None, (probes, grid)

    @property
    def described(self) -> dict[str, Any]:
        """What an artifact says of them."""
        probes = [probe.described for probe in self.probes]
        own = {"own": self.own, "own_start": self.own_start}
        return {"probes": probes, "combine": self.combine, **own}

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Probes:
        """What an artifact describes."""
        probes = tuple(_probe(**probe) for probe in described["probes"])
        return cls(**{**described, "probes": probes})


def _probe(kind: str, **values: int) -> Probe:
    return _KINDS[kind](**values)


_KINDS: dict[str, type[Probe]] = {kind.kind: kind for kind in (Digit, Hash, Permuted)}


def hashed(ids: int, rows: int, *, salt: int, start: int = 0) -> Probe:
    """A hash of a table's ids into these rows; with as many rows as ids each has its own.

    Args:
        ids: that read them: of the table, without those of its own prefix.
    """
    if rows >= ids:
        return Digit(rows=rows, start=start)
    return Hash(rows=rows, start=start, salt=salt)


def prime_up_to(most: int) -> int:
    """The largest prime number that is not above `most`, which is 2 or more."""
    return next(number for number in range(most, 1, -1) if is_prime(number))


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def splitmix64(x: Tensor) -> Tensor:
    """What SplitMix64 puts out first from the state x, int64 as its bits.

    Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _right(x, 31)


def _signed(bits: int) -> int:
    return bits - (1 << 64)


def _right(x: Tensor, bits: int) -> Tensor:
    """Shifted as if without a sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _upper(x: Tensor) -> Tensor:
    return _right(x, 32)


def _share(half: Tensor, number: int) -> Tensor:
    """Which of `number` parts of equal length, of all that 32 bits can be, they are in."""
    return half * number >> 32
