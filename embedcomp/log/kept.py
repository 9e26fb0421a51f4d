"""Counts of a log's files, kept so that no file is counted twice.

A log that grows by a part a day is counted a part a day: a file that is in the folder of counts as
it is in the log (by its name, size and time) is not opened. A file that was written anew is counted
anew. One that is gone from the log counts until it is forgotten, so old files may be deleted, and a
window that moves over the days forgets one as it takes in another.

FOLDER/DIGEST OF A FILE'S NAME/*.counts     its ids, by bucket (stored.py)
FOLDER/DIGEST OF A FILE'S NAME/entry.json   what the file was, and its other sums; written last
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from embedcomp.errors import BadLog
from embedcomp.kernels.threads import in_threads
from embedcomp.log.click_log import FOOTERS, ClickLog, Piece
from embedcomp.log.counts import DenseSums, Each, LogCounts, count
from embedcomp.log.stored import Part, Store
from embedcomp.support.files import sync
from embedcomp.support.filesystems import absolute, opened, write_whole

FORMAT, ENTRY = 1, "entry.json"
TYPES = {"int64": pa.int64(), "string": pa.string()}
TYPES |= {f"list of {name}": pa.list_(kind) for name, kind in TYPES.items()}

Deal = Callable[[Sequence[Piece]], list[list[Piece]]]  # pieces to those who count them


@dataclass(frozen=True)
class Entry:
    """Counts of one file.

    log, split: that it is of; columns: what was counted; file: its name within the log.
    size: in bytes; written: when, in nanoseconds, where the filesystem tells.
    counts: LogCounts as `_to_dict` gives it.
    """

    log: str
    split: str
    columns: Mapping[str, Any]
    file: str
    size: int
    written: int | None
    counts: Mapping[str, Any]
    format: int = FORMAT

    @property
    def stamp(self) -> tuple[str, int, int | None]:
        return self.file, self.size, self.written

    @property
    def rows(self) -> int:
        return int(self.counts["rows"])


class KeptCounts:
    """The counts of one split of a log in a folder.

    Args:
        folder: path or URL; made when there is something to keep.
        most_bytes: of memory that counting may take in each process.

    Raises:
        BadLog: the folder has counts of another log or split, or of other columns.
    """

    def __init__(self, folder: str, log: ClickLog, split: str, most_bytes: int):
        self.folder, self.log, self.split, self.most_bytes = folder, log, split, most_bytes
        self.entries = {entry.file: entry for entry in entries(folder)}
        self._source = absolute(log.path)
        for entry in self.entries.values():
            self._refuse_other(entry)
        if self.entries:
            kinds = next(iter(self.entries.values())).columns["categorical"]
            log.know_types({name: TYPES[kind] for name, kind in kinds.items()})

    def _refuse_other(self, entry: Entry) -> None:
        if (entry.log, entry.split) != (self._source, self.split):
            raise BadLog(
                f"{self.folder} has counts of the split {entry.split!r} of {entry.log}, not of the "
                f"split {self.split!r} of {self._source}; give that a folder of its own"
            )
        if entry.columns != self._columns(entry.columns["categorical"]):
            raise BadLog(
                f"{self.folder} has counts of other columns ({entry.file}) than schema.toml of "
                f"{self._source} names now; give another folder, and the old files once more"
            )

    def _columns(self, types: Mapping[str, str]) -> dict[str, Any]:
        """What is counted. Types are of the names in schema.toml that they are known of."""
        schema = self.log.schema
        return {
            "label": schema.label,
            "categorical": {name: types.get(name) for name in schema.categorical},
            "dense": {name: column.transform for name, column in schema.dense.items()},
        }

    @cached_property
    def _counted_columns(self) -> dict[str, Any]:
        names = {str(kind): name for name, kind in TYPES.items()}
        types = {name: names[str(self.log.types[name])] for name in self.log.schema.categorical}
        return self._columns(types)

    def fresh(self) -> list[pafs.FileInfo]:
        """The log's files that are not kept as they are now."""
        known = {entry.stamp for entry in self.entries.values()}
        return [file for file in self.log.listed(self.split) if self._stamp(file) not in known]

    def stamp(self) -> str:
        """Changes whenever the counts do that the folder will have once all files are counted."""
        listed = {stamp[0]: stamp for stamp in map(self._stamp, self.log.listed(self.split))}
        kept = {file: entry.stamp for file, entry in self.entries.items()}
        text = json.dumps([self.folder, sorted((kept | listed).values(), key=str)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def add(
        self, files: Sequence[pafs.FileInfo], each: Each = map, deal: Deal | None = None
    ) -> None:
        """Count files and keep what was found.

        Args:
            each, deal: go over the pieces in several processes.
        """
        for file in files:
            _delete(self.folder, self._name(file))
        pieces = self.log.pieces_of(self.split, files)
        totals = {file.path: LogCounts.empty(self.log) for file in files}
        for found in each(self._count, [pieces] if deal is None else deal(pieces)):
            for name, counts in found.items():
                totals[name] += counts
        for file in files:
            self._keep(file, totals[file.path])

    def _count(self, pieces: Sequence[Piece]) -> dict[str, LogCounts]:
        """Counts by file, put aside in the file's own folder."""
        by_file: dict[str, list[Piece]] = {}
        for piece in pieces:
            by_file.setdefault(piece.file, []).append(piece)
        found = {}
        for file, mine in by_file.items():
            folder = posixpath.join(self.folder, _digest(self.log.relative(file)))
            found[file] = count(self.log, mine, Store(folder, self.most_bytes))
            found[file].put_aside()
        return found

    def _keep(self, file: pafs.FileInfo, counts: LogCounts) -> None:
        name, size, written = self._stamp(file)
        told = _to_dict(counts)
        entry = Entry(self._source, self.split, self._counted_columns, name, size, written, told)
        filesystem, root = opened(self.folder)
        place = posixpath.join(root, _digest(name))
        filesystem.create_dir(place, recursive=True)  # of a file without rows, there is none
        if isinstance(filesystem, pafs.LocalFileSystem):
            sync(Path(place))
        text = json.dumps(asdict(entry))
        write_whole(filesystem, posixpath.join(place, ENTRY), text.encode())
        self.entries[name] = entry

    def total(self, store: Store) -> LogCounts:
        """The sum of all that is kept.

        Args:
            store: where shares of ids wait while they are ranked.
        """
        found = LogCounts.empty(self.log, store)
        for entry in self.entries.values():
            folder = posixpath.join(self.folder, _digest(entry.file))
            found += _from_dict(self.log, entry.counts, folder)
        return found

    def _name(self, file: pafs.FileInfo) -> str:
        return self.log.relative(file.path)

    def _stamp(self, file: pafs.FileInfo) -> tuple[str, int, int | None]:
        return self._name(file), file.size, file.mtime_ns


@contextmanager
def counted(log: ClickLog, split: str, most_bytes: int, folder: str = "") -> Iterator[LogCounts]:
    """Counts of a split. What does not fit into memory waits on disk until the block ends.

    Args:
        most_bytes: of memory that counting may take.
        folder: of counts that are kept, which are then of all files that were ever counted there;
            "": none are.
    """
    with TemporaryDirectory(prefix="embedcomp-counts-") as scratch:
        store = Store(scratch, most_bytes)
        if not folder:
            yield count(log, log.pieces(split), store)
            return
        kept = KeptCounts(folder, log, split, most_bytes)
        for file in kept.fresh():
            kept.add([file])
        yield kept.total(store)


def entries(folder: str) -> list[Entry]:
    """What is kept in a folder, by name of file.

    Raises:
        BadLog: an entry cannot be read, or another version of embedcomp wrote it.
    """
    filesystem, root = opened(folder)
    listed = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [info.path for info in listed if posixpath.basename(info.path) == ENTRY]

    def read(file: str) -> Entry:
        try:
            with filesystem.open_input_stream(file) as stream:
                entry = Entry(**json.loads(stream.read()))
        except (OSError, ValueError, TypeError) as error:
            raise BadLog(f"{file} is no readable entry of counts ({error}); delete it") from error
        if entry.format != FORMAT:
            raise BadLog(
                f"{file} is of format {entry.format}, and this embedcomp reads {FORMAT}; delete "
                f"{folder}, and have the files counted again"
            )
        return entry

    return sorted(in_threads(read, files, FOOTERS), key=lambda entry: entry.file)


def forget(folder: str, pattern: str) -> list[Entry]:
    """Delete the counts of files whose names match, as "day=2026-01-*"; tells which they were."""
    gone = [entry for entry in entries(folder) if fnmatch(entry.file, pattern)]
    for entry in gone:
        _delete(folder, entry.file)
    return gone


def _delete(folder: str, name: str) -> None:
    """Delete what is kept of a file, if anything is: its entry first."""
    filesystem, root = opened(folder)
    place = posixpath.join(root, _digest(name))
    if filesystem.get_file_info(posixpath.join(place, ENTRY)).is_file:
        filesystem.delete_file(posixpath.join(place, ENTRY))
    if filesystem.get_file_info(place).type == pafs.FileType.Directory:
        filesystem.delete_dir(place)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def _to_dict(counts: LogCounts) -> dict[str, Any]:
    """As JSON keeps it, of counts that are all put aside; files by their names in their folder."""
    ids = {}
    for name, one in counts.ids.items():
        parts = [replace(part, file=posixpath.basename(part.file)) for part in one.stored]
        ids[name] = {
            "nulls": one.nulls,
            "empty_bags": one.empty_bags,
            "stored": [[*asdict(part).values()] for part in parts],
        }
    dense = {name: asdict(sums) for name, sums in counts.dense.items()}
    return {"rows": counts.rows, "positives": counts.positives, "ids": ids, "dense": dense}


def _from_dict(log: ClickLog, told: Mapping[str, Any], folder: str) -> LogCounts:
    found = LogCounts.empty(log)
    found.rows, found.positives = told["rows"], told["positives"]
    for name, one in told["ids"].items():
        ids = found.ids[name]
        ids.nulls, ids.empty_bags = one["nulls"], one["empty_bags"]
        ids.stored = [Part(posixpath.join(folder, file), *rest) for file, *rest in one["stored"]]
    found.dense = {name: DenseSums(**sums) for name, sums in told["dense"].items()}
    return found
