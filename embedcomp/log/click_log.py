"""A click log: Parquet files and the schema.toml beside them, read a piece at a time."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from embedcomp.errors import BadLog
from embedcomp.log.schema import Schema, parse_schema

READ_ROWS = 65_536  # rows decoded at a time: what bounds the reader's memory


@dataclass(frozen=True)
class Piece:
    """One row group of one file, or a run of its rows: the unit in which a log is shuffled, shared
    out and counted.
    """

    split: str
    file: str
    row_group: int
    rows: int
    first: int = 0  # of the rows, within the row group

    def part(self, start: int, end: int) -> Piece:
        """The rows from `start` to `end`, counted within the piece."""
        return replace(self, first=self.first + start, rows=end - start)


class ClickLog:
    """A click log on a local path or any pyarrow filesystem URL.

    Args:
        path: folder that holds schema.toml.

    Raises:
        BadSchema: schema.toml is missing or wrong.
        BadLog: on first use of a split: no file, no row, a missing column or one of another type.
    """

    def __init__(self, path: str):
        self.path = str(path)
        self._fs, self._root = _filesystem(self.path)
        self.schema: Schema = self._read_schema()

    def __reduce__(self) -> tuple[type[ClickLog], tuple[str]]:
        return ClickLog, (self.path,)

    def _read_schema(self) -> Schema:
        where = posixpath.join(self._root, "schema.toml")
        try:
            with self._fs.open_input_stream(where) as stream:
                text = stream.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BadLog(
                f"{self.path} has no readable schema.toml: a click log is a folder with "
                "schema.toml and the Parquet files it names"
            ) from error
        return parse_schema(text, where)

    def files(self, split: str) -> list[str]:
        """The split's Parquet files, sorted by name."""
        if split not in self.schema.splits:
            known = ", ".join(self.schema.splits)
            raise BadLog(f"{self.path} has no split {split!r}; schema.toml names: {known}")
        pattern = posixpath.join(self._root, self.schema.splits[split])
        found = self._expand(pattern)
        if not found:
            raise BadLog(f"split {split!r} of {self.path} is empty: no Parquet file at {pattern}")
        return found

    def _expand(self, pattern: str) -> list[str]:
        if any(mark in pattern for mark in "*?["):
            base = pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)]
            selector = pafs.FileSelector(
                posixpath.dirname(base), recursive=True, allow_not_found=True
            )
            infos = self._fs.get_file_info(selector)
            return sorted(i.path for i in infos if i.is_file and fnmatch(i.path, pattern))
        info = self._fs.get_file_info(pattern)
        if info.type == pafs.FileType.Directory:
            infos = self._fs.get_file_info(pafs.FileSelector(pattern, recursive=True))
            return sorted(i.path for i in infos if i.is_file and i.path.endswith(".parquet"))
        return [pattern] if info.is_file else []

    def pieces(self, split: str) -> list[Piece]:
        """Every row group of the split, checked against the schema, in file order."""
        pieces = []
        for file in self.files(split):
            with self._open(file) as parquet:
                _check_columns(file, parquet.schema_arrow, self.schema, parquet.metadata.num_rows)
                for group in range(parquet.metadata.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    if rows:
                        pieces.append(Piece(split, file, group, rows))
        if not pieces:
            raise BadLog(f"split {split!r} of {self.path} is empty: its files hold 0 rows")
        return pieces

    def rows(self, split: str) -> int:
        """Rows of the split, from the files' own metadata."""
        return sum(piece.rows for piece in self.pieces(split))

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """Canonical type of each column, from the first file of the first split."""
        file = self.files(next(iter(self.schema.splits)))[0]
        with self._open(file) as parquet:
            found = parquet.schema_arrow
            _check_columns(file, found, self.schema, parquet.metadata.num_rows)
        return {
            name: canonical_type(found.field(name).type)
            if name in self.schema.categorical
            else pa.float32()
            for name in self.schema.columns
        }

    def stamp(self, splits: Sequence[str]) -> str:
        """Changes whenever the schema or a file of the splits does (by its size and time)."""
        files = [file for split in splits for file in self.files(split)]
        infos = self._fs.get_file_info(files)
        parts = [[info.path, info.size, info.mtime_ns] for info in infos]
        text = json.dumps([self.schema.model_dump(), parts])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fingerprint(self, splits: Sequence[str] = ()) -> str:
        """Names what the log (or some splits of it) holds, by the schema and by the files' footers:
        rows, bytes and statistics of every column. A copy elsewhere has the same, unlike its
        `stamp`.
        """
        splits = sorted(splits or self.schema.splits)
        footers = {split: [self._footer(f) for f in self.files(split)] for split in splits}
        text = json.dumps([self.schema.model_dump(), footers], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _footer(self, file: str) -> dict[str, object]:
        with self._open(file) as parquet:
            found: dict[str, object] = parquet.metadata.to_dict()
        return found

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The piece's rows in canonical types (float32 label of 0 or 1, int64 or string ids,
        float32 numbers), at most READ_ROWS at a time.

        Raises:
            BadLog: the file is damaged, or a value is not what the schema says.
        """
        try:
            with self._open(piece.file) as parquet:
                batches = parquet.iter_batches(
                    READ_ROWS, row_groups=[piece.row_group], columns=self.schema.columns
                )
                for batch in _run_of_rows(batches, piece.first, piece.rows):
                    yield self._canonical(piece, batch)
        except (OSError, pa.ArrowException) as error:
            raise BadLog(
                f"{piece.file}: row group {piece.row_group} ({piece.rows:,} rows) cannot be read: "
                f"{_one_line(error)}; is the file whole?"
            ) from error

    def _open(self, file: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._fs.open_input_file(file), pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise BadLog(
                f"{file} is not a readable Parquet file ({_one_line(error)}); "
                "was it cut short while it was written or copied?"
            ) from error

    def _canonical(self, piece: Piece, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = {}
        for name, wanted in self.types.items():
            column = batch.column(name)
            if name in self.schema.categorical and canonical_type(column.type) != wanted:
                raise BadLog(
                    f"{piece.file}: column {name!r} is {column.type} over {piece.rows:,} rows, "
                    f"but {wanted} elsewhere in the log; write it as {wanted}"
                )
            # not safe: an int64 number loses bits as float32, which is what a model sees anyway
            columns[name] = column if column.type == wanted else column.cast(wanted, safe=False)
        _check_labels(piece, self.schema.label, columns[self.schema.label])
        for name in self.schema.dense:
            _check_finite(piece, name, columns[name])
        return pa.RecordBatch.from_pydict(columns)


def canonical_type(found: pa.DataType) -> pa.DataType | None:
    """int64, string, float32 or a list of the first two; None for what no column may be."""
    if pa.types.is_dictionary(found):
        return canonical_type(found.value_type)
    if pa.types.is_integer(found) or pa.types.is_boolean(found):
        return pa.int64()
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return pa.string()
    if pa.types.is_floating(found) or pa.types.is_decimal(found):
        return pa.float32()
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        inner = canonical_type(found.value_type)
        return pa.list_(inner) if inner in (pa.int64(), pa.string()) else None
    return None


def _run_of_rows(
    batches: Iterable[pa.RecordBatch], first: int, rows: int
) -> Iterator[pa.RecordBatch]:
    """`rows` rows from the one numbered `first` on; what lies behind them is not decoded."""
    for batch in batches:
        found = batch.slice(min(first, len(batch)), rows)
        first, rows = max(0, first - len(batch)), rows - len(found)
        if len(found):
            yield found
        if not rows:
            return


def _check_columns(file: str, found: pa.Schema, schema: Schema, rows: int) -> None:
    for name in schema.columns:
        copies = found.names.count(name)
        if copies == 0:
            raise BadLog(
                f"{file} ({rows:,} rows) has no column {name!r}, which schema.toml names; "
                f"its columns are: {', '.join(found.names)}"
            )
        if copies > 1:
            raise BadLog(f"{file} ({rows:,} rows) has {copies} columns named {name!r}; keep one")
        _check_type(file, name, found.field(name).type, schema, rows)


def _check_type(file: str, name: str, found: pa.DataType, schema: Schema, rows: int) -> None:
    kind = canonical_type(found)
    number = kind in (pa.int64(), pa.float32())
    if name == schema.label or name in schema.dense:
        good, wanted = number, "a number"
    else:
        good = kind is not None and kind != pa.float32()
        wanted = "int64 or string, or a list of either"
        if schema.categorical[name].dense_ids:
            good = good and kind in (pa.int64(), pa.list_(pa.int64()))
            wanted = "int64 (or a list of it), since dense_ids is set"
    if not good:
        raise BadLog(
            f"{file}: column {name!r} is {found} over {rows:,} rows, but must be {wanted}; "
            "change the file or schema.toml"
        )


def _check_labels(piece: Piece, label: str, column: pa.Array) -> None:
    good = pc.fill_null(pc.is_in(column, pa.array([0.0, 1.0], pa.float32())), False)
    bad = len(column) - pc.sum(good).as_py()
    if bad:
        example = column.filter(pc.invert(good))[0].as_py()
        raise BadLog(
            f"{piece.file}: label column {label!r} has {bad:,} of {len(column):,} rows read that "
            f"are neither 0 nor 1 (first: {example}); a click is 1, everything else is 0"
        )


def _check_finite(piece: Piece, name: str, column: pa.Array) -> None:
    infinite = pc.sum(pc.is_inf(column)).as_py() or 0
    if infinite:
        raise BadLog(
            f"{piece.file}: dense column {name!r} has {infinite:,} infinite values in "
            f"{len(column):,} rows read; write null where there is no number"
        )


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" in path:
        fs, root = pafs.FileSystem.from_uri(path)
        return fs, root
    return pafs.LocalFileSystem(), path.rstrip("/") or "/"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
