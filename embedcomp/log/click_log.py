"""A click log: Parquet files and the schema.toml beside them, read a piece at a time."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from embedcomp.errors import BadLog
from embedcomp.kernels.threads import in_threads
from embedcomp.log.schema import Schema, parse_schema
from embedcomp.support.filesystems import opened

READ_ROWS = 65_536  # rows decoded at a time: what bounds the reader's memory
Stamp = tuple[str, int, int | None]  # of a file: path, bytes, nanoseconds when it was written
FOOTERS = 16  # files whose footers are read at a time: an object store answers late, but to many


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
    """A click log in a local folder, or at the URL of an object store.

    Args:
        path: folder that holds schema.toml, or its URL (`support.filesystems.opened`).
        filesystem: that the folder is in; None: the local one, or the URL's.

    Raises:
        BadSettings: nothing knows such a URL.
        BadSchema: schema.toml is missing or wrong.
        BadLog: on first use of a split: no file, no row, a missing column or one of another type.
    """

    def __init__(self, path: str, filesystem: pafs.FileSystem | None = None):
        self.path, self._given = str(path), filesystem
        self._fs, self._root = opened(self.path) if filesystem is None else (filesystem, self.path)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)
        self._groups: dict[Stamp, tuple[int, ...]] = {}  # rows of the row groups of checked files
        self._last: tuple[object, pq.FileMetaData] | None = None  # footer of the file last read
        self.schema: Schema = self._read_schema()

    def __reduce__(self) -> tuple[object, ...]:
        known = {name: value for name, value in self.__dict__.items() if name == "types"}
        return ClickLog, (self.path, self._given), known

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
        return [file.path for file in self.listed(split)]

    def listed(self, split: str) -> list[pafs.FileInfo]:
        """The same with what a listing tells of them: none is opened."""
        if split not in self.schema.splits:
            known = ", ".join(self.schema.splits)
            raise BadLog(f"{self.path} has no split {split!r}; schema.toml names: {known}")
        pattern = posixpath.join(self._root, self.schema.splits[split])
        found = sorted(self._expand(pattern), key=lambda info: info.path)
        if not found:
            raise BadLog(f"split {split!r} of {self.path} is empty: no Parquet file at {pattern}")
        return found

    def _expand(self, pattern: str) -> list[pafs.FileInfo]:
        if any(mark in pattern for mark in "*?["):
            base = pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)]
            selector = pafs.FileSelector(
                posixpath.dirname(base), recursive=True, allow_not_found=True
            )
            infos = self._fs.get_file_info(selector)
            return [info for info in infos if info.is_file and fnmatch(info.path, pattern)]
        info = self._fs.get_file_info(pattern)
        if info.type == pafs.FileType.Directory:
            infos = self._fs.get_file_info(pafs.FileSelector(pattern, recursive=True))
            return [info for info in infos if info.is_file and info.path.endswith(".parquet")]
        return [info] if info.is_file else []

    def relative(self, file: str) -> str:
        """The name of a file of the log within its folder."""
        return posixpath.relpath(file, self._root)

    def pieces(self, split: str) -> list[Piece]:
        """Every row group of the split, checked against the schema, in file order."""
        pieces = self.pieces_of(split, self.listed(split))
        if not pieces:
            raise BadLog(f"split {split!r} of {self.path} is empty: its files hold 0 rows")
        return pieces

    def pieces_of(self, split: str, files: Sequence[pafs.FileInfo]) -> list[Piece]:
        """The row groups of some files of a split. Footers are read once, several at a time."""
        fresh = [file for file in files if stamp_of(file) not in self._groups]
        found = in_threads(self._checked, [file.path for file in fresh], FOOTERS)
        self._groups |= zip(map(stamp_of, fresh), found, strict=True)
        return [
            Piece(split, file.path, group, rows)
            for file in files
            for group, rows in enumerate(self._groups[stamp_of(file)])
            if rows
        ]

    def _checked(self, file: str) -> tuple[int, ...]:
        """Rows of each of a file's row groups, once its columns are what the schema says."""
        with self._open(file) as parquet:
            found = parquet.metadata
            _check_columns(file, parquet.schema_arrow, self.schema, found.num_rows)
            return tuple(found.row_group(i).num_rows for i in range(found.num_row_groups))

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

    def know_types(self, categorical: Mapping[str, pa.DataType]) -> None:
        """Take these for the types of the ids, so that no file is opened to find them."""
        self.__dict__["types"] = {
            name: categorical.get(name, pa.float32()) for name in self.schema.columns
        }

    def stamp(self, splits: Sequence[str]) -> str:
        """Changes whenever the schema or a file of the splits does (by its size and time)."""
        parts = [stamp_of(file) for split in splits for file in self.listed(split)]
        text = json.dumps([self.schema.model_dump(), parts])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fingerprint(self, splits: Sequence[str] = ()) -> str:
        """Names what the log (or some splits of it) holds, by the schema and by the files' footers:
        rows, bytes and statistics of every column. A copy elsewhere has the same, unlike its
        `stamp`.
        """
        found = hashlib.sha256()
        for part in self._told(sorted(splits or self.schema.splits)):
            found.update(part.encode())
        return found.hexdigest()[:16]

    def _told(self, splits: Sequence[str]) -> Iterator[str]:
        """The JSON list of the schema and the footers by split, of which one file's is held."""
        yield f"[{json.dumps(self.schema.model_dump())}, {{"
        for place, split in enumerate(splits):
            yield f"{', ' if place else ''}{json.dumps(split)}: ["
            for number, footer in enumerate(in_threads(self._footer, self.files(split), FOOTERS)):
                yield f"{', ' if number else ''}{footer}"
            yield "]"
        yield "}]"

    def _footer(self, file: str) -> str:
        with self._open(file) as parquet:
            return json.dumps(parquet.metadata.to_dict(), default=str)

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The piece's rows in canonical types (float32 label of 0 or 1, int64 or string ids,
        float32 numbers), at most READ_ROWS at a time.

        Raises:
            BadLog: the file is damaged, or a value is not what the schema says.
        """
        try:
            with self._open_again(piece.file) as parquet:
                batches = parquet.iter_batches(
                    min(READ_ROWS, piece.first + piece.rows),  # what follows is not decoded
                    row_groups=[piece.row_group],
                    columns=self.schema.columns,
                )
                for batch in _run_of_rows(batches, piece.first, piece.rows):
                    yield self._canonical(piece, batch)
        except (OSError, pa.ArrowException) as error:
            raise BadLog(
                f"{piece.file}: row group {piece.row_group} ({piece.rows:,} rows) cannot be read: "
                f"{_one_line(error)}; is the file whole?"
            ) from error

    def _open_again(self, file: str) -> pq.ParquetFile:
        """The file; its footer is kept for the next row group of the same."""
        stream = self._stream(file)
        name, last = (file, stream.size()), self._last
        known = last[1] if last is not None and last[0] == name else None
        found = self._parquet(file, stream, known)
        self._last = name, found.metadata
        return found

    def _open(self, file: str) -> pq.ParquetFile:
        return self._parquet(file, self._stream(file), None)

    def _stream(self, file: str) -> pa.NativeFile:
        try:
            return self._fs.open_input_file(file)
        except OSError as error:
            raise _unreadable(file, error) from error

    def _parquet(
        self, file: str, stream: pa.NativeFile, known: pq.FileMetaData | None
    ) -> pq.ParquetFile:
        try:
            # a store that answers late is asked for a row group's columns at once, not one by one
            return pq.ParquetFile(stream, metadata=known, pre_buffer=not self._local)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, error) from error

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


def stamp_of(file: pafs.FileInfo) -> Stamp:
    """What a listing tells of a file: it changes when the file is written anew."""
    return file.path, file.size, file.mtime_ns


def _unreadable(file: str, error: Exception) -> BadLog:
    return BadLog(
        f"{file} is not a readable Parquet file ({_one_line(error)}); "
        "was it cut short while it was written or copied?"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
