"""Raw ids to row numbers.

Rows 0 and 1 of every table belong to ids that are not known and to null; the others follow by
falling count, so row order is frequency order: hot rows lie together, "the top tenth" is a slice
and dropping rare ids is a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from embedcomp.log.counts import IdCounts

FEW = 4096  # values that are looked up one by one
UNKNOWN = 0  # also every id seen fewer than `min_count` times
NULL = 1
RESERVED = 2


class WrongType(TypeError):
    """A column of another type than the training log's."""


class Vocabulary:
    """The known ids of one column.

    Args:
        values: known ids, most frequent first (int64 or string, no nulls).
        counts: int64 [rows]; times each row is looked up in the training split, the reserved
            rows included.
        dense_ids: ids are row numbers already; `values` is empty, and the rows for unknown and
            null come last, so that id i stays row i.
    """

    def __init__(self, values: pa.Array, counts: np.ndarray, dense_ids: bool = False):
        self.values, self.counts, self.dense_ids = values, counts, dense_ids
        self._index: pd.Index | None = None  # built on first use

    @classmethod
    def from_counts(cls, found: IdCounts, min_count: int, dense_ids: bool = False) -> Vocabulary:
        """Keep the ids seen at least `min_count` times."""
        values, counts = found.sorted()
        if dense_ids:
            return cls._from_row_numbers(found, values.to_numpy(), counts)
        kept = int(np.searchsorted(-counts, -min_count, side="right"))
        reserved = [int(counts[kept:].sum()), found.nulls]
        return cls(values[:kept], np.concatenate([reserved, counts[:kept]]).astype(np.int64))

    @classmethod
    def _from_row_numbers(cls, found: IdCounts, ids: np.ndarray, counts: np.ndarray) -> Vocabulary:
        valid = ids >= 0
        rows = int(ids.max(initial=-1)) + 1
        per_row = np.zeros(rows + RESERVED, np.int64)
        per_row[ids[valid]] = counts[valid]
        per_row[rows + UNKNOWN], per_row[rows + NULL] = counts[~valid].sum(), found.nulls
        return cls(pa.array([], pa.int64()), per_row, dense_ids=True)

    @property
    def rows(self) -> int:
        """Rows of the column's table."""
        return len(self.counts)

    @property
    def type(self) -> pa.DataType:
        return self.values.type

    @property
    def unknown_row(self) -> int:
        return self.rows - RESERVED + UNKNOWN if self.dense_ids else UNKNOWN

    @property
    def null_row(self) -> int:
        return self.rows - RESERVED + NULL if self.dense_ids else NULL

    def encode(self, column: pa.Array) -> np.ndarray:
        """Row number of each value: int32 [len(column)].

        Raises:
            WrongType: the values are of another type than those of the training log.
        """
        if column.null_count == len(column):  # nulls may come without a type
            return np.full(len(column), self.null_row, np.int32)
        if column.type != self.type:
            raise WrongType(f"holds {column.type} values, but the training log had {self.type}")
        if self.dense_ids:
            return self._encode_row_numbers(column)
        if len(column) <= FEW and self.type == pa.int64():
            return self._few_numbers(column)
        distinct = column.dictionary_encode()
        few = len(distinct.dictionary) <= FEW
        rows = (self._few_strings if few else self._known_rows)(distinct.dictionary)
        rows = np.append(rows, np.int32(NULL))  # the last entry stands for null
        places = distinct.indices
        if column.null_count:
            places = places.fill_null(len(rows) - 1)
        return rows[places.to_numpy()]

    def _known_rows(self, values: pa.Array) -> np.ndarray:
        if self._index is None:
            self._index = pd.Index(self.values.to_numpy(zero_copy_only=False))
        found = self._index.get_indexer(values.to_numpy(zero_copy_only=False))  # -1: not known
        return np.where(found < 0, UNKNOWN, found + RESERVED).astype(np.int32)

    # An index takes a tenth of a millisecond however few the values are, and a request has a few of
    # each of many features.

    def _few_numbers(self, column: pa.Array) -> np.ndarray:
        known, rows = self._sorted
        values = (column.fill_null(0) if column.null_count else column).to_numpy()
        places = np.searchsorted(known[:-1], values)
        found: np.ndarray = np.where(known[places] == values, rows[places], np.int32(UNKNOWN))
        if column.null_count:
            found[column.is_null().to_numpy(zero_copy_only=False)] = NULL
        return found

    def _few_strings(self, values: pa.Array) -> np.ndarray:
        get = self._rows_of.get
        return np.array([get(value, UNKNOWN) for value in values.to_pylist()], np.int32)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The known numbers in order and their rows; a last entry stands for all beyond."""
        values = self.values.to_numpy()
        order = np.argsort(values)
        rows = np.append(order + RESERVED, UNKNOWN).astype(np.int32)
        return np.append(values[order], np.int64(0)), rows

    @cached_property
    def _rows_of(self) -> dict[Any, int]:
        return {value: row for row, value in enumerate(self.values.to_pylist(), RESERVED)}

    def _encode_row_numbers(self, column: pa.Array) -> np.ndarray:
        ids = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        known = (ids >= 0) & (ids < self.rows - RESERVED)
        rows = np.where(known, ids, self.unknown_row)
        if column.null_count:
            rows[column.is_null().to_numpy(zero_copy_only=False)] = self.null_row
        return rows.astype(np.int32)


def save(vocabularies: Sequence[Vocabulary], file: Path) -> None:
    """Write several to one Parquet file, a row each.

    Known ids lie in order of count, so counts are differences of hardly a bit; ids are differences
    of about the bits that their range takes.
    """
    numbers = [None if v.type != pa.int64() else v.values for v in vocabularies]
    strings = [None if v.type == pa.int64() else v.values for v in vocabularies]
    table = pa.table(
        {
            "numbers": _lists(numbers, pa.int64()),
            "strings": _lists(strings, pa.string()),
            "counts": _lists([pa.array(v.counts) for v in vocabularies], pa.int64()),
            "dense_ids": [v.dense_ids for v in vocabularies],
        }
    )
    pq.write_table(
        table,
        file,
        compression="zstd",
        compression_level=9,
        use_dictionary=False,
        write_statistics=False,
        column_encoding={
            "numbers.list.element": "DELTA_BINARY_PACKED",
            "strings.list.element": "DELTA_BYTE_ARRAY",
            "counts.list.element": "DELTA_BINARY_PACKED",
        },
    )


def _lists(values: Sequence[pa.Array | None], kind: pa.DataType) -> pa.Array:
    """An array of lists; None is null."""
    lengths = [0 if v is None else len(v) for v in values]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    held = [v.cast(kind) for v in values if v is not None]
    flat = pa.concat_arrays(held) if held else pa.array([], kind)
    return pa.ListArray.from_arrays(offsets, flat, mask=pa.array([v is None for v in values]))


def load(file: Path) -> list[Vocabulary]:
    """What `save` wrote."""
    table = pq.read_table(file).combine_chunks()
    columns = [table[name] for name in ("numbers", "strings", "counts", "dense_ids")]
    found = []
    for numbers, strings, counts, dense_ids in zip(*columns, strict=True):
        values = numbers.values if numbers.is_valid else strings.values
        values = pa.concat_arrays([values, values[:0]])  # not a part of another array any more
        found.append(Vocabulary(values, counts.values.to_numpy().copy(), dense_ids.as_py()))
    return found


def load_one(file: Path) -> Vocabulary:
    """A vocabulary of an artifact of the first two formats."""
    table = pq.read_table(file)
    dense_ids = (table.schema.metadata or {}).get(b"dense_ids") == b"1"
    column = table["value"].combine_chunks()
    values = column[:0] if dense_ids else column[RESERVED:]
    return Vocabulary(values, table["count"].to_numpy().copy(), dense_ids)
