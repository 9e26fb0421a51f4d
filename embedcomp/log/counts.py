"""One pass over the log: how often each id occurs, and the sums of each dense column.

Counts are sums: those of two shards add up to those of the whole, exactly. Integer counts do so
by themselves; float sums are kept a piece apart and added by `math.fsum`, whose result does not
depend on the order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcomp.log.click_log import ClickLog, Piece

MERGE_VALUES = 1_000_000  # value counts gathered before they are merged: bounds the memory


@dataclass
class IdCounts:
    """Occurrences of each distinct value of one categorical column.

    values: distinct values, none of them null; counts: int64, parallel to values.
    """

    type: pa.DataType
    nulls: int = 0
    empty_bags: int = 0
    _parts: list[pa.Table] = field(default_factory=list)
    _loose: int = 0  # values gathered since the last merge

    def add_column(self, column: pa.Array) -> None:
        """Count one column of a batch; a null list counts as one null id."""
        if isinstance(column, pa.ListArray):
            self.empty_bags += pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0
            self.nulls += column.null_count
            column = column.flatten()
        self.nulls += column.null_count
        found = pc.value_counts(column.drop_null())
        names = ["value", "count"]
        self._add_part(pa.table([found.field("values"), found.field("counts")], names=names))

    def _add_part(self, part: pa.Table) -> None:
        self._parts.append(part)
        self._loose += part.num_rows
        if self._loose > max(MERGE_VALUES, self._parts[0].num_rows):
            self._merge()

    def _merge(self) -> pa.Table:
        names = ["value", "count"]
        if not self._parts:
            empty = [pa.array([], self.type), pa.array([], pa.int64())]
            self._parts = [pa.table(empty, names=names)]
        if len(self._parts) > 1:
            gathered = pa.concat_tables(self._parts)
            # one thread: pyarrow 26 counts its threads wrongly where a process has few of them
            grouped = gathered.group_by("value", use_threads=False)
            merged = grouped.aggregate([("count", "sum")])
            self._parts = [pa.table([merged["value"], merged["count_sum"]], names=names)]
        self._loose = 0
        return self._parts[0]

    def sorted(self) -> tuple[pa.Array, np.ndarray]:
        """Values and counts, most frequent first; equal counts by value."""
        table = self._merge().sort_by([("count", "descending"), ("value", "ascending")])
        return table["value"].combine_chunks(), table["count"].to_numpy().copy()

    def __iadd__(self, other: IdCounts) -> IdCounts:
        self.nulls += other.nulls
        self.empty_bags += other.empty_bags
        self._add_part(other._merge())
        return self

    def __getstate__(self) -> dict[str, object]:
        self._merge()
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
    """What one pass over some pieces of a log found."""

    rows: int
    positives: int
    ids: dict[str, IdCounts]
    dense: dict[str, DenseSums]

    @classmethod
    def empty(cls, log: ClickLog) -> LogCounts:
        ids = {name: IdCounts(_value_type(log.types[name])) for name in log.schema.categorical}
        return cls(0, 0, ids, {name: DenseSums() for name in log.schema.dense})

    def __iadd__(self, other: LogCounts) -> LogCounts:
        self.rows += other.rows
        self.positives += other.positives
        for name in self.ids:
            self.ids[name] += other.ids[name]
        for name in self.dense:
            self.dense[name] += other.dense[name]
        return self


def count(log: ClickLog, pieces: Iterable[Piece]) -> LogCounts:
    """Count the pieces; counts of disjoint pieces add up with `+=` to those of all."""
    total = LogCounts.empty(log)
    for piece in pieces:
        total += _count_piece(log, piece)
    return total


def _count_piece(log: ClickLog, piece: Piece) -> LogCounts:
    found = LogCounts.empty(log)
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
    for name, (total, squares) in sums.items():
        found.dense[name].sums.append(math.fsum(total))
        found.dense[name].squares.append(math.fsum(squares))
    return found


def numbers(column: pa.Array) -> np.ndarray:
    """The column as float32 [rows]; null is NaN."""
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values.astype(np.float32, copy=False)


def transformed(values: np.ndarray, transform: str) -> np.ndarray:
    """Numbers float32 [rows] after a transform."""
    if transform == "log1p":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values


def _value_type(column: pa.DataType) -> pa.DataType:
    return column.value_type if pa.types.is_list(column) else column
