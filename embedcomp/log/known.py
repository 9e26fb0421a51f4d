"""Known ids and their rows as a hash table, which the compiled engine reads where it lies.

Of many ids in a range of 2^w, each takes w + 4.3 bits: 8.5 bytes of any int64, 5.5 below 2^40. Less
than w bits cannot say which of them has which row, unless most of the range is known: n ids are one
of 2^w (2^w - 1) ... (2^w - n + 1) possible orders. Of ten million strings of 20 letters, each takes
5.9 bytes besides its letters.

Ids are hashed one to one onto numbers of w bits, and lie in buckets of about four by the upper part
of their hashes. What is left of a hash, the remainder, tells ids of a bucket apart, so that an
unknown id is never taken for a known one (quotienting: J. G. Cleary, Compact hash tables using
bidirectional linear probing, 1984). Remainder and row are one number, the code. Strings may share a
hash, so their letters are compared.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import save_file

from embedcomp.errors import BadArtifact
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.support.files import cache_folder, replacing
from embedcomp.support.mapped import mapped_with_metadata

NUMBERS, STRINGS, ROW_NUMBERS = "numbers", "strings", "row numbers"
FOLDER, SUFFIX = "known_ids_2", ".safetensors"  # the number changes whenever tables do
UNUSED_S = 30 * 24 * 3600
COLUMNS = "columns"  # in a file's metadata

BUCKET_BITS = 2  # a bucket has four ids, in the mean,
SHARED_BITS = 8  # and of 2^8 strings that are not known, one has a known one's remainder there
BEYOND = 16  # bytes behind packed numbers, which are read together with the last ones
RISING_BLOCK = 32  # as in known.h
ARRAYS = ("codes", "starts", "text", "texts")  # of a table, by which a file names them


@dataclass(frozen=True)
class About:
    """What ids of a column are, and the rows that they have."""

    kind: str  # NUMBERS, STRINGS, or ROW_NUMBERS: an id below `ids` is its row
    ids: int
    first_row: int  # of the first one; others follow in their order
    unknown_row: int
    null_row: int
    smallest: int = 0  # of NUMBERS,
    span: int = 0  # and how much more the largest is

    @property
    def hash_bits(self) -> int:
        """Bits that tell all NUMBERS of the range apart, or most of the strings."""
        most = self.span if self.kind == NUMBERS else max(self.ids - 1, 0) << SHARED_BITS
        return max(most.bit_length(), 1)

    @property
    def remainders(self) -> int:
        """How many an id in a bucket may have; the engine's numbers have 64 bits."""
        return min((1 << self.hash_bits + BUCKET_BITS) // max(self.ids, 1), 1 << 63)

    @property
    def buckets(self) -> int:
        """As many as it takes so that no two hashes share both bucket and remainder."""
        return -(-(1 << self.hash_bits) // self.remainders)

    @property
    def code_bits(self) -> int:
        """Bits of remainder * ids + place, where the first id has place 0."""
        return (self.remainders * self.ids - 1).bit_length()

    @property
    def code_bytes(self) -> int:
        """Bytes of all codes."""
        return (0 if self.kind == ROW_NUMBERS else -(-self.ids * self.code_bits // 8)) + BEYOND


class Rising:
    """Whole numbers, at least one, of which none is less than the one before it, packed.

    Args:
        blocks: uint8, of RISING_BLOCK numbers each: their first one in 4 bytes, and how much more
            each is in as many bits as the largest difference takes; then BEYOND bytes.
        count: numbers that there are.

    Raises:
        ValueError: blocks of so many numbers are of another length.
    """

    def __init__(self, blocks: np.ndarray, count: int):
        self.blocks, number = blocks, -(-count // RISING_BLOCK)
        self.bits = (len(blocks) - BEYOND) // (4 * number) - 1
        if not 0 <= self.bits <= 32 or blocks.shape != (_rising_bytes(count, self.bits),):
            raise ValueError(f"{blocks.shape} bytes are no blocks of {count:,} numbers")

    @classmethod
    def of(cls, numbers: np.ndarray) -> Rising:
        """Pack uint32 numbers.

        Raises:
            NotBuilt: the compiled engine is missing.
        """
        lasts = np.append(numbers[RISING_BLOCK - 1 :: RISING_BLOCK], numbers[-1])
        bases = numbers[::RISING_BLOCK]
        bits = int((lasts[: len(bases)] - bases).max()).bit_length()
        found = cls(np.zeros(_rising_bytes(len(numbers), bits), np.uint8), len(numbers))
        native.needed().embedcomp_pack_rising(
            ctypes.byref(found.struct), address(numbers), len(numbers)
        )
        return found

    @property
    def struct(self) -> native.Rising:
        """As the engine takes it."""
        return native.Rising(address(self.blocks), self.bits)


def _rising_bytes(count: int, bits: int) -> int:
    return -(-count // RISING_BLOCK) * (4 + RISING_BLOCK * bits // 8) + BEYOND


class Known:
    """The known ids of one column; needs the compiled engine.

    Args:
        codes: uint8, a code of About.code_bits each, bucket by bucket and rising there, and BEYOND
            bytes.
        starts: of each bucket among the codes, and the end of the last.
        text: uint8, the letters of all strings, one after another, in the order of their rows.
        texts: where each string begins in them, and the end of the last.
    """

    def __init__(
        self, about: About, codes: np.ndarray, starts: Rising, text: np.ndarray, texts: Rising
    ):
        self.about, self.codes, self.starts = about, codes, starts
        self.text, self.texts = text, texts

    @classmethod
    def of(cls, values: pa.Array, about: About) -> Known:
        """The table of ids, int64 or string without nulls; of ROW_NUMBERS, none is needed.

        While it is made it takes a byte an id more than in the end.

        Raises:
            NotBuilt: the compiled engine is missing.
        """
        library, numbers = native.needed(), np.empty(0, np.int64)
        text, nothing = np.empty(0, np.uint8), Rising.of(np.zeros(1, np.uint32))
        texts = nothing
        if about.kind == STRINGS:
            offsets, text = _strings(values)
            text, texts = text[offsets[0] :], Rising.of((offsets - offsets[0]).view(np.uint32))
        elif about.kind == NUMBERS and about.ids:
            numbers = np.ascontiguousarray(values.to_numpy())
            smallest, largest = int(numbers.min()), int(numbers.max())
            about = replace(about, smallest=smallest, span=largest - smallest)
        found = cls(about, np.zeros(about.code_bytes, np.uint8), nothing, text, texts)
        if about.kind == ROW_NUMBERS:
            return found
        starts = np.empty(about.buckets + 1, np.uint32)
        library.embedcomp_know_starts(found.at, address(numbers), address(starts))
        found = cls(about, found.codes, Rising.of(starts), text, texts)
        library.embedcomp_know(found.at, address(numbers), address(starts))
        return found

    def rows_of(self, column: pa.Array) -> np.ndarray:
        """Row of each value, int32 [n]: int64, or strings where the ids are; nulls too."""
        rows = np.empty(len(column), np.int32)
        offsets = None
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
            codes=address(self.codes),
            starts=self.starts.struct,
            text=address(self.text),
            texts=self.texts.struct,
            text_bytes=len(self.text),
            first_row=about.first_row,
            ids=about.ids,
            smallest=about.smallest % (1 << 64),
            span=about.span,
            buckets=about.buckets,
            remainders=about.remainders,
            shift=64 - about.hash_bits,
            code_bits=about.code_bits,
            kind=native.KNOWN.index(about.kind),
            unknown_row=about.unknown_row,
            null_row=about.null_row,
        )

    @property
    def at(self) -> int:
        """Where the engine finds it."""
        return ctypes.addressof(self.struct)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        held = self.codes, self.starts.blocks, self.text, self.texts.blocks
        return dict(zip(ARRAYS, held, strict=True))


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
    arrays = {f"{i}.{name}": a for i, one in enumerate(columns) for name, a in one.arrays.items()}
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
    try:
        return [
            _of_arrays(About(**about), {name: arrays[f"{i}.{name}"] for name in ARRAYS})
            for i, about in enumerate(json.loads(metadata[COLUMNS]))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArtifact(f"{file} is no table of known ids: {error}") from error


def _of_arrays(about: About, held: Mapping[str, np.ndarray]) -> Known:
    """A table of arrays from a file, in none of which the engine will read too far."""
    possible = about.kind in native.KNOWN and about.ids >= 0 and 0 <= about.span < 1 << 64
    if not possible or held["codes"].shape != (about.code_bytes,) or held["text"].ndim != 1:
        raise ValueError(f"{held['codes'].shape} bytes are no codes of {about}")
    buckets = 0 if about.kind == ROW_NUMBERS else about.buckets
    strings = about.ids if about.kind == STRINGS else 0
    starts, texts = Rising(held["starts"], buckets + 1), Rising(held["texts"], strings + 1)
    return Known(about, held["codes"], starts, held["text"], texts)


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
