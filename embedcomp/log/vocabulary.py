"""Raw ids to row numbers.

Rows 0 and 1 of every table belong to ids that are not known and to null; the others follow by
falling count, so row order is frequency order: hot rows lie together, "the top tenth" is a slice
and dropping rare ids is a cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcomp.errors import BadArtifact
from embedcomp.kernels import native
from embedcomp.log import known
from embedcomp.log.counts import Each, IdCounts
from embedcomp.log.known import NUMBERS, ROW_NUMBERS, STRINGS, About, Known

log = logging.getLogger(__name__)

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
        self.dense_ids = dense_ids
        self.type, self.rows = values.type, len(counts)  # rows of the column's table
        self._held: tuple[pa.Array, np.ndarray] | None = values, counts
        self._read: Callable[[], Vocabulary] | None = None

    @classmethod
    def of_table(cls, known: Known, read: Callable[[], Vocabulary]) -> Vocabulary:
        """One whose ids and counts are read when they are first asked for."""
        found, about = cls.__new__(cls), known.about
        found.dense_ids = about.kind == ROW_NUMBERS
        found.type = pa.string() if about.kind == STRINGS else pa.int64()
        found.rows = about.ids + RESERVED
        found.known, found._held, found._read = known, None, read
        return found

    @classmethod
    def from_counts(
        cls, found: IdCounts, min_count: int, dense_ids: bool = False, each: Each = map
    ) -> Vocabulary:
        """Keep the ids seen at least `min_count` times.

        Args:
            each: goes over shares of the ids.
        """
        if dense_ids:
            return cls._from_row_numbers(found, each)
        values, counts, rare = found.ranked(min_count, each)
        return cls(values, np.concatenate([[rare, found.nulls], counts]).astype(np.int64))

    @classmethod
    def _from_row_numbers(cls, found: IdCounts, each: Each) -> Vocabulary:
        values, counts, _ = found.ranked(each=each)
        ids = values.to_numpy()
        valid = ids >= 0
        rows = int(ids.max(initial=-1)) + 1
        per_row = np.zeros(rows + RESERVED, np.int64)
        per_row[ids[valid]] = counts[valid]
        per_row[rows + UNKNOWN], per_row[rows + NULL] = counts[~valid].sum(), found.nulls
        return cls(pa.array([], pa.int64()), per_row, dense_ids=True)

    @property
    def values(self) -> pa.Array:
        """Known ids, most frequent first."""
        return self._all()[0]

    @property
    def counts(self) -> np.ndarray:
        """Times each row is looked up in the training split, int64 [rows]."""
        return self._all()[1]

    def _all(self) -> tuple[pa.Array, np.ndarray]:
        if self._held is None:
            assert self._read is not None
            whole = self._read()
            self._held = whole.values, whole.counts
        return self._held

    @property
    def unknown_row(self) -> int:
        return self.rows - RESERVED + UNKNOWN if self.dense_ids else UNKNOWN

    @property
    def null_row(self) -> int:
        return self.rows - RESERVED + NULL if self.dense_ids else NULL

    @cached_property
    def known(self) -> Known:
        """Rows of known ids, for the compiled engine.

        Raises:
            NotBuilt: it is missing.
        """
        kind = NUMBERS if self.type == pa.int64() else STRINGS
        about = About(kind, len(self.values), RESERVED, self.unknown_row, self.null_row)
        if self.dense_ids:
            about = replace(about, kind=ROW_NUMBERS, ids=self.rows - RESERVED, first_row=0)
        return Known.of(self.values, about)

    def encode(self, column: pa.Array) -> np.ndarray:
        """Row number of each value: int32 [len(column)].

        Raises:
            WrongType: the values are of another type than those of the training log.
        """
        if column.null_count == len(column):  # nulls may come without a type
            return np.full(len(column), self.null_row, np.int32)
        if column.type != self.type:
            raise WrongType(f"holds {column.type} values, but the training log had {self.type}")
        if native.library() is not None:
            return self.known.rows_of(column)
        return self._encode_row_numbers(column) if self.dense_ids else self._encode_ids(column)

    def __getstate__(self) -> dict[str, Any]:
        made = ("known", "_rows_of")  # anew, in another process
        whole = self.__dict__ | {"_held": self._all(), "_read": None}
        return {name: value for name, value in whole.items() if name not in made}

    # The same without the compiled engine.

    def _encode_ids(self, column: pa.Array) -> np.ndarray:
        distinct = column.dictionary_encode()
        get = self._rows_of.get
        rows = [get(value, UNKNOWN) for value in distinct.dictionary.to_pylist()]
        places = distinct.indices.fill_null(len(rows)).to_numpy()
        return np.array([*rows, NULL], np.int32)[places]

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


def opened(file: Path, table: Path) -> list[Vocabulary]:
    """What `save` wrote; ids are looked up in a file of `known`, which is made if it is not there.

    Processes that open the same map it, and none of them reads the ids themselves until somebody
    asks for them. Without the compiled engine, and where no file can be written, they are read.
    """
    if native.library() is None:
        return load(file)
    try:
        tables = known.load(table)
    except BadArtifact:
        found = load(file)
        try:
            known.save([one.known for one in found], table)
            tables = known.load(table)
        except (OSError, BadArtifact) as error:
            log.warning("ids are kept in this process alone: %s", error)
            return found
    whole = cache(partial(load, file))

    def read(place: int) -> Vocabulary:
        return whole()[place]

    return [Vocabulary.of_table(one, partial(read, place)) for place, one in enumerate(tables)]


def load_one(file: Path) -> Vocabulary:
    """A vocabulary of an artifact of the first two formats."""
    table = pq.read_table(file)
    dense_ids = (table.schema.metadata or {}).get(b"dense_ids") == b"1"
    column = table["value"].combine_chunks()
    values = column[:0] if dense_ids else column[RESERVED:]
    return Vocabulary(values, table["count"].to_numpy().copy(), dense_ids)
