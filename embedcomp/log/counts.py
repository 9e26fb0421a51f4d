"""One pass over the log: how often each id occurs, and the sums of each dense column.

Counts are sums: those of two shards add up to those of the whole, exactly. Integer counts do so
by themselves; float sums are kept a piece apart and added by `math.fsum`, whose result does not
depend on the order. Counts of more ids than memory may hold wait on disk (stored.py), dealt out by
a hash of the id, and are added up a share of the ids at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.ranking import Ranked, frequencies, merged, rank
from embedcomp.log.stored import COUNT, VALUE, Part, Store, Writer, shares

MERGE_VALUES = 1_000_000  # value counts gathered before they are added up: bounds the memory

T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """`map`, or what does the same in several processes: results are in the items' order."""

    def __call__(self, work: Callable[[T], R], items: Sequence[T], /) -> Iterable[R]: ...


@dataclass
class IdCounts:
    """Occurrences of each distinct value of one categorical column.

    store: where counts wait that are too many for memory; None: they are all held.
    stored: those that do.
    held: bytes of the others.
    """

    type: pa.DataType
    store: Store | None = None
    nulls: int = 0
    empty_bags: int = 0
    stored: list[Part] = field(default_factory=list)
    held: int = 0
    _parts: list[pa.Table] = field(default_factory=list)  # each value once in each
    _loose: int = 0  # values gathered since the last merge

    def add_column(self, column: pa.Array) -> None:
        """Count one column of a batch; a null list counts as one null id."""
        if isinstance(column, pa.ListArray):
            self.empty_bags += pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0
            self.nulls += column.null_count
            column = column.flatten()
        self.nulls += column.null_count
        found = pc.value_counts(column.drop_null())
        self.add_counts(pa.table([found.field("values"), found.field("counts")], [VALUE, COUNT]))

    def add_counts(self, part: pa.Table) -> None:
        """Add values, each once, and their counts."""
        self._parts.append(part)
        self._loose += part.num_rows
        self.held += part.nbytes
        if self._loose > max(MERGE_VALUES, self._parts[0].num_rows):
            self.merge()

    def merge(self) -> pa.Table:
        """Add up what is held: each value once."""
        if not self._parts:
            self._parts = [
                pa.table([pa.array([], self.type), pa.array([], pa.int64())], [VALUE, COUNT])
            ]
        if len(self._parts) > 1:
            gathered = pa.concat_tables(self._parts)
            # one thread: pyarrow 26 counts its threads wrongly where a process has few of them
            grouped = gathered.group_by(VALUE, use_threads=False)
            summed = grouped.aggregate([(COUNT, "sum")])
            self._parts = [pa.table([summed[VALUE], summed[f"{COUNT}_sum"]], [VALUE, COUNT])]
        self._loose, self.held = 0, self._parts[0].nbytes
        return self._parts[0]

    def put_aside(self, writer: Writer) -> None:
        """Write what is held to a file of the store."""
        self.stored += writer.by_bucket(self.merge())
        self._parts, self.held = [], 0

    def shares(self, work: Callable[[pa.Table], R], each: Each = map) -> list[R]:
        """`work` of tables of values and counts that together have each value once."""
        if not self.stored:
            return [work(self.merge())]
        assert self.store is not None, "what is stored has a store"
        if self.merge().num_rows:
            with self.store.writing() as writer:
                self.put_aside(writer)
        whole = partial(_added_up, self.type, work)
        return list(each(whole, shares(self.stored, self.store.most_bytes)))

    def ranked(self, min_count: int = 1, each: Each = map) -> Ranked:
        """The values seen at least `min_count` times, most frequent first; equal counts by value.

        Args:
            each: goes over shares of the values.
        """
        aside = self.store if self.stored else None
        found = self.shares(partial(rank, min_count=min_count, store=aside), each)
        blocks = list(merged([run for run, _ in found]))
        none = [pa.table([pa.array([], self.type), pa.array([], pa.int64())], [VALUE, COUNT])]
        table = pa.concat_tables(blocks or none)
        counts = table[COUNT].to_numpy().copy()
        return Ranked(table[VALUE].combine_chunks(), counts, sum(rare for _, rare in found))

    def frequencies(self, each: Each = map) -> np.ndarray:
        """How many values were seen so often, most frequent first: int64 [k, 2]."""
        found = np.concatenate(self.shares(frequencies, each))
        times, places = np.unique(-found[:, 0], return_inverse=True)
        ids = np.bincount(places, found[:, 1], len(times)).astype(np.int64)
        return np.stack([-times, ids], axis=1)

    def __iadd__(self, other: IdCounts) -> IdCounts:
        self.nulls += other.nulls
        self.empty_bags += other.empty_bags
        self.stored += other.stored
        if other._parts:
            self.add_counts(other.merge())
        return self

    def __getstate__(self) -> dict[str, object]:
        self.merge()
        return self.__dict__


@dataclass
class DenseSums:
    """Sums of one dense column after its transform, one entry a piece."""

    rows: int = 0
    nulls: int = 0
    sums: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def __iadd__(self, other: DenseSums) -> DenseSums:
        self.rows += other.rows
        self.nulls += other.nulls
        self.sums += other.sums
        self.squares += other.squares
        return self

    def mean_and_scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the values that are not null; 1 where they do not vary."""
        n = self.rows - self.nulls
        if not n:
            return 0.0, 1.0
        mean = math.fsum(self.sums) / n
        variance = max(math.fsum(self.squares) / n - mean * mean, 0.0)
        return mean, math.sqrt(variance) if variance > 1e-12 else 1.0


@dataclass
class LogCounts:
    """What one pass over some pieces of a log found.

    store: where counts wait that are too many for memory; None: they are all held.
    """

    rows: int
    positives: int
    ids: dict[str, IdCounts]
    dense: dict[str, DenseSums]
    store: Store | None = None

    @classmethod
    def empty(cls, log: ClickLog, store: Store | None = None) -> LogCounts:
        kinds = {name: _value_type(log.types[name]) for name in log.schema.categorical}
        ids = {name: IdCounts(kind, store) for name, kind in kinds.items()}
        return cls(0, 0, ids, {name: DenseSums() for name in log.schema.dense}, store)

    def __iadd__(self, other: LogCounts) -> LogCounts:
        self.rows += other.rows
        self.positives += other.positives
        for name in self.ids:
            self.ids[name] += other.ids[name]
        for name in self.dense:
            self.dense[name] += other.dense[name]
        self.make_room()
        return self

    def make_room(self) -> None:
        """Where more is held than memory may hold: add it up, and put it aside if that is little
        help.
        """
        if self.store is None or self._held <= self.store.gathered:
            return
        for ids in self.ids.values():
            ids.merge()
        if self._held > self.store.gathered // 2:
            self.put_aside()

    @property
    def _held(self) -> int:
        return sum(ids.held for ids in self.ids.values())

    def put_aside(self, name: str = "") -> None:
        """Write all that is held to a file of the store, of this name if one is given."""
        assert self.store is not None, "there is a place to put it"
        with self.store.writing(name) as writer:
            for ids in self.ids.values():
                ids.put_aside(writer)


def count(log: ClickLog, pieces: Iterable[Piece], store: Store | None = None) -> LogCounts:
    """Count the pieces; counts of disjoint pieces add up with `+=` to those of all.

    Args:
        store: where counts wait that are too many for memory; None: they are all held.
    """
    total = LogCounts.empty(log, store)
    for piece in pieces:
        _count_piece(log, piece, total)
    return total


def _count_piece(log: ClickLog, piece: Piece, found: LogCounts) -> None:
    sums = {name: ([0.0], [0.0]) for name in log.schema.dense}
    for batch in log.read(piece):
        found.rows += batch.num_rows
        found.positives += int(pc.sum(batch.column(log.schema.label)).as_py())
        for name, ids in found.ids.items():
            ids.add_column(batch.column(name))
        for name, (total, squares) in sums.items():
            values = transformed(numbers(batch.column(name)), log.schema.dense[name].transform)
            known = values[~np.isnan(values)].astype(np.float64)
            found.dense[name].rows += len(values)
            found.dense[name].nulls += len(values) - len(known)
            total.append(float(known.sum()))
            squares.append(float(np.square(known).sum()))
        found.make_room()
    for name, (total, squares) in sums.items():
        found.dense[name].sums.append(math.fsum(total))
        found.dense[name].squares.append(math.fsum(squares))


def numbers(column: pa.Array) -> np.ndarray:
    """The column as float32 [rows]; null is NaN."""
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values.astype(np.float32, copy=False)


def transformed(values: np.ndarray, transform: str) -> np.ndarray:
    """Numbers float32 [rows] after a transform."""
    if transform == "log1p":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values


def _added_up(
    kind: pa.DataType, work: Callable[[pa.Table], R], share: tuple[Sequence[Part], int, int]
) -> R:
    """`work` of the counts of a run of buckets."""
    parts, first, last = share
    found = IdCounts(kind)
    for part in parts:
        found.add_counts(part.of(first, last))
    return work(found.merge())


def _value_type(column: pa.DataType) -> pa.DataType:
    return column.value_type if pa.types.is_list(column) else column
