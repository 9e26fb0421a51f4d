"""Counts that wait on disk: what a pass over a log has gathered when its memory is full.

Ids are dealt into BUCKETS by a hash, so the counts of one id from any number of passes meet when
the parts of its bucket are read. A file holds parts one after another, each a small Arrow stream
that can be read by itself, and so from an object store as well.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from embedcomp.errors import BadLog
from embedcomp.support.filesystems import opened

BUCKETS = 256
PART_ROWS = 16_384  # of a part that is read by itself, at least: bounds what a merge of many holds
MERGING = 6  # bytes that adding up counts takes at its peak, of each byte that is gathered
HASHED = 65_536  # strings whose letters are hashed at a time
VALUE, COUNT, BUCKET = "value", "count", "bucket"
FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of splitmix64
POWERS = np.cumprod(np.full(4096, 0x9E3779B97F4A7C15, np.uint64))  # of an odd number


@dataclass(frozen=True)
class Part:
    """Counts of ids of one column, from the bucket `first` to `last`, within a file.

    start, length: where they lie, in bytes; nbytes: what they take in memory.
    """

    file: str
    start: int
    length: int
    nbytes: int
    first: int
    last: int

    def read(self) -> pa.Table:
        """The values, counts and buckets.

        Raises:
            BadLog: they are not there any more, or damaged.
        """
        folder, name = posixpath.split(self.file)
        filesystem, root = _opened(folder)
        try:
            with filesystem.open_input_file(posixpath.join(root, name)) as file:
                stream = file.read_at(self.length, self.start)
            return pa.ipc.open_stream(stream).read_all()
        except (OSError, pa.ArrowException) as error:
            raise BadLog(
                f"{self.file} holds no readable counts ({error}); delete its folder, and have the "
                "log's file counted again"
            ) from error

    def of(self, first: int, last: int) -> pa.Table:
        """Its values and counts of the buckets `first` to `last`."""
        table = self.read()
        if self.first < first or last < self.last:
            buckets = table[BUCKET].to_numpy()
            start, end = np.searchsorted(buckets, [first, last + 1])
            table = table.slice(start, end - start)
        return table.select([VALUE, COUNT])


@dataclass(frozen=True)
class Store:
    """Where counts wait that would be too many for memory.

    Args:
        folder: path or URL; whoever counts and whoever adds up must see it.
        most_bytes: of memory that counting, and then adding up, may take in each process.
    """

    folder: str
    most_bytes: int

    @property
    def gathered(self) -> int:
        """Bytes of counts that may be held until they are added up."""
        return self.most_bytes // MERGING

    @contextmanager
    def writing(self, name: str = "") -> Iterator[Writer]:
        """A new file, of this name or one that nobody else has."""
        filesystem, root = _opened(self.folder)
        name = name or f"{uuid4().hex}.counts"
        filesystem.create_dir(root, recursive=True)
        with filesystem.open_output_stream(posixpath.join(root, name)) as sink:
            yield Writer(posixpath.join(self.folder, name), sink)


@dataclass(frozen=True)
class Writer:
    file: str
    sink: pa.NativeFile

    def by_bucket(self, counts: pa.Table) -> list[Part]:
        """Write values and counts, each value once."""
        buckets = bucket_of(counts[VALUE])
        order = np.argsort(buckets, kind="stable")
        table = counts.append_column(BUCKET, pa.array(buckets)).take(pa.array(order))
        ends = np.cumsum(np.bincount(buckets, minlength=BUCKETS))
        return [
            self._part(table.slice(start, end - start), first, last)
            for start, end, first, last in _runs(ends)
        ]

    def in_order(self, counts: pa.Table) -> list[Part]:
        """Write a table in parts of its own order."""
        starts = range(0, counts.num_rows, PART_ROWS)
        return [self._part(counts.slice(start, PART_ROWS), 0, BUCKETS - 1) for start in starts]

    def _part(self, table: pa.Table, first: int, last: int) -> Part:
        start = self.sink.tell()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(self.sink, table.schema, options=options) as stream:
            stream.write_table(table)
        length = self.sink.tell() - start
        return Part(self.file, start, length, table.nbytes, first, last)


def _runs(ends: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Rows from, to, and the first and last bucket, of parts of whole buckets, none empty."""
    start = first = 0
    for bucket, end in enumerate(ends.tolist()):
        if end - start >= PART_ROWS or (bucket == BUCKETS - 1 and end > start):
            yield start, end, first, bucket
            start, first = end, bucket + 1


def shares(parts: Sequence[Part], most_bytes: int) -> list[tuple[list[Part], int, int]]:
    """Runs of buckets whose counts are added up within `most_bytes`, with the parts they lie in."""
    needed = -(-sum(part.nbytes for part in parts) * MERGING // most_bytes)
    edges = np.linspace(0, BUCKETS, min(max(needed, 1), BUCKETS) + 1).astype(int).tolist()
    return [
        ([part for part in parts if part.first < end and part.last >= start], start, end - 1)
        for start, end in pairwise(edges)
    ]


def bucket_of(values: pa.ChunkedArray) -> np.ndarray:
    """The bucket of each id, uint8 [n]; int64 or string, without nulls. The same on any machine."""
    parts = [_hash(chunk) for chunk in values.chunks]
    hashes = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        hashes ^= hashes >> np.uint64(shift)
        hashes *= factor
    return (hashes >> np.uint64(56)).astype(np.uint8)


def _hash(values: pa.Array) -> np.ndarray:
    """uint64 [n], a copy."""
    if values.type == pa.int64():
        return values.to_numpy().astype(np.uint64)
    cuts = [values.slice(start, HASHED) for start in range(0, len(values), HASHED)]
    return np.concatenate([_hash_strings(cut) for cut in cuts]) if cuts else np.empty(0, np.uint64)


def _hash_strings(values: pa.Array) -> np.ndarray:
    """Sum of each letter (a byte, from 1 on) times the power of its place."""
    _, offsets, letters = values.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(values) + 1, 4 * values.offset).astype(np.int64)
    found, lengths = np.zeros(len(values), np.uint64), np.diff(bounds)
    if lengths.any():
        held = np.frombuffer(letters, np.uint8, bounds[-1] - bounds[0], bounds[0])
        starts = bounds[:-1] - bounds[0]
        places = np.arange(len(held)) - np.repeat(starts, lengths)
        terms = (held.astype(np.uint64) + np.uint64(1)) * POWERS[places % len(POWERS)]
        found[lengths > 0] = np.add.reduceat(terms, starts[lengths > 0])
    return found


@lru_cache
def _opened(folder: str) -> tuple[pafs.FileSystem, str]:
    return opened(folder)
