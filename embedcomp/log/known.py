"""Known ids and their rows as a hash table, which the compiled engine reads where it lies.

An id takes 18 bytes and a string 12 besides its letters: there are half as many slots again as ids,
each for an id, or a part of its hash, and its row.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import save_file

from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.support.files import cache_folder, replacing
from embedcomp.support.mapped import mapped_with_metadata

NUMBERS, STRINGS, ROW_NUMBERS = "numbers", "strings", "row numbers"
SLOTS = {NUMBERS: 12, STRINGS: 8}  # bytes of one
PARTS = ("slots", "text", "offsets")  # of a table, by which a file names them
FOLDER, SUFFIX = "known_ids_1", ".safetensors"  # the number changes whenever tables do
UNUSED_S = 30 * 24 * 3600
COLUMNS = "columns"  # in a file's metadata


@dataclass(frozen=True)
class About:
    """What ids of a column are, and the rows that they have."""

    kind: str  # NUMBERS, STRINGS, or ROW_NUMBERS: an id below `ids` is its row
    ids: int
    first_row: int  # of the first one; others follow in their order
    unknown_row: int
    null_row: int


class Known:
    """The known ids of one column; needs the compiled engine.

    Args:
        slots: uint8, of SLOTS bytes each.
        text: uint8, the letters of all strings, one after another.
        offsets: int32 [ids + 1], where each begins in them.
    """

    def __init__(self, about: About, slots: np.ndarray, text: np.ndarray, offsets: np.ndarray):
        self.about, self.slots, self.text, self.offsets = about, slots, text, offsets

    @classmethod
    def of(cls, values: pa.Array, about: About) -> Known:
        """The table of ids, int64 or string without nulls; of ROW_NUMBERS, none is needed.

        Raises:
            NotBuilt: the compiled engine is missing.
        """
        library, n = native.needed(), about.ids
        numbers = text = np.empty(0, np.uint8)
        offsets = np.empty(0, np.int32)
        if about.kind == STRINGS:
            offsets, text = _strings(values)
        elif about.kind == NUMBERS:
            numbers = np.ascontiguousarray(values.to_numpy())
        slots = np.zeros((n + n // 2 + 1) * SLOTS.get(about.kind, 0), np.uint8)
        found = cls(about, slots, text, offsets)
        if about.kind != ROW_NUMBERS:
            library.embedcomp_know(found.at, address(numbers), n)
        return found

    def rows_of(self, column: pa.Array) -> np.ndarray:
        """Row of each value, int32 [n]: int64, or strings where the ids are; nulls too."""
        rows = np.empty(len(column), np.int32)
        offsets, values = None, None
        if self.about.kind == STRINGS:
            offsets, values = _strings(column)
        else:
            values = _buffer(column, 1, np.int64, column.offset, len(column))
        native.needed().embedcomp_known(
            self.at,
            address(values),
            None if offsets is None else address(offsets),
            len(column),
            address(rows),
        )
        if column.null_count:
            rows[column.is_null().to_numpy(zero_copy_only=False)] = self.about.null_row
        return rows

    @cached_property
    def struct(self) -> native.Known:
        """As the engine takes it."""
        about = self.about
        return native.Known(
            slots=address(self.slots),
            capacity=len(self.slots) // SLOTS.get(about.kind, 1),
            text=address(self.text),
            offsets=address(self.offsets),
            first_row=about.first_row,
            ids=about.ids,
            kind=native.KNOWN.index(about.kind),
            unknown_row=about.unknown_row,
            null_row=about.null_row,
        )

    @property
    def at(self) -> int:
        """Where the engine finds it."""
        return ctypes.addressof(self.struct)


def cached(name: str) -> Path:
    """Where this machine keeps the tables of a file of vocabularies with this checksum.

    Tables that no process has opened for a month are deleted.
    """
    folder = cache_folder() / FOLDER
    since = time.time() - UNUSED_S
    with suppress(OSError):  # it may be another user's
        for old in list(folder.glob(f"*{SUFFIX}")):
            with suppress(OSError):  # another process may be at it
                if old.stat().st_mtime < since:
                    old.unlink()
    return folder / f"{name[:32]}{SUFFIX}"


def save(columns: Sequence[Known], file: Path) -> None:
    """Write the tables of several columns.

    Raises:
        OSError: the file cannot be written, as on a full disk.
    """
    arrays = {f"{i}.{part}": getattr(one, part) for i, one in enumerate(columns) for part in PARTS}
    told = json.dumps([asdict(one.about) for one in columns])
    with replacing(file) as fresh:
        try:
            save_file(arrays, fresh, metadata={COLUMNS: told})
        except SafetensorError as error:  # which is what its writer makes of an OSError
            raise OSError(f"{file} cannot be written: {error}") from error


def load(file: Path) -> list[Known]:
    """The tables that `save` wrote, where they lie.

    Raises:
        BadArtifact: it is no such file.
    """
    arrays, metadata = mapped_with_metadata(file)
    with suppress(OSError):
        os.utime(file)  # it is in use
    return [
        Known(About(**about), *(arrays[f"{i}.{part}"] for part in PARTS))
        for i, about in enumerate(json.loads(metadata[COLUMNS]))
    ]


def _strings(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int32 [n + 1] of strings, and their letters."""
    if not len(column):
        return np.zeros(1, np.int32), np.empty(0, np.uint8)
    offsets = _buffer(column, 1, np.int32, column.offset, len(column) + 1)
    return offsets, _buffer(column, 2, np.uint8, 0, int(offsets[-1]))


def _buffer(column: pa.Array, place: int, kind: type, first: int, length: int) -> np.ndarray:
    held = column.buffers()[place]
    if held is None:
        return np.empty(0, kind)
    return np.frombuffer(held, kind, length, first * np.dtype(kind).itemsize)
