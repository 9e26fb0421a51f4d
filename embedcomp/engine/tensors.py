"""The tensors of an artifact, where they lie in its file, and what compressed layers mean."""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embedcomp.errors import BadArtifact
from embedcomp.kernels import native, windows
from embedcomp.kernels.bits import (
    LARGEST,
    MOST_ATOMS,
    Codes,
    parsed,
)

_TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"},
    **{"I8": "<i1", "U8": "<u1", "BOOL": "?", "BF16": "<u2"},  # bfloat16 as its bits
}

OTHER_NAMES = "other names"  # in a safetensors file's metadata: of tensors that layers share

PRECISIONS = {"bfloat16": "bfloat16", "symmetric_int8": "int8"}  # of products, by storage


def mapped(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, read-only and shared with every process that maps it.

    Raises:
        BadArtifact: it is not such a file.
    """
    try:
        with file.open("rb") as stream:
            whole = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        start = 8 + int(whole[:8].view("<u8")[0])
        header = json.loads(whole[8:start].tobytes())
        metadata = header.pop("__metadata__", None)
        found = {name: _view(whole[start:], **entry) for name, entry in header.items()}
        return found | {name: found[kept] for name, kept in other_names(metadata).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{file} is not a safetensors file: {error}") from error


def other_names(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Names of tensors that are stored under another name, and which, by a file's metadata."""
    found: dict[str, str] = json.loads((metadata or {}).get(OTHER_NAMES, "{}"))
    return found


def _view(data: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    first, last = data_offsets
    return data[first:last].view(_TYPES[dtype]).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A StoredRows module: how its tensors are to be read."""

    storage: str
    rows: int
    width: int
    tiers: tuple[tuple[int, int], ...] = ()  # row after the last, bytes of a row ("trellis": bits)


@dataclass(frozen=True, kw_only=True)
class Table:
    """An embedding module."""

    rows: int
    dim: int
    pooling: str  # "sum", "mean" or "none"
    padding_idx: int | None = None
    last_offset: bool = True  # a bag's offsets end with the number of ids
    stored: bool = False  # its rows are a StoredRows module; else a float32 weight
    decodes: str = ""  # which are codes of this kind of decoder


@dataclass(frozen=True)
class Rows:
    """What the engine reads of a table: rows [k], and the map from them to what it stands for.

    decoder: float64 [k + 1, dim], from a bag's summed codes and how often it has the bias, to its
        row; None: the codes are the row.
    codes: float64 [k + 1, k], from the same to the codes as numbers; None: they are them.
    """

    stored: native.Stored
    width: int
    held: tuple[Any, ...]
    decoder: np.ndarray | None
    codes: np.ndarray | None


class Tensors:
    """An artifact's tensors by name, with the layers that are stored in other forms.

    Args:
        held: what is on disk.
        stored: StoredRows modules by name.
        tables: embedding modules by name.
    """

    def __init__(
        self,
        held: Mapping[str, np.ndarray],
        stored: Mapping[str, StoredMatrix],
        tables: Mapping[str, Table],
    ):
        self.held, self.stored, self.tables = held, stored, tables

    def weight(self, name: str) -> np.ndarray:
        """A weight of the dense part as float32; that of a compressed layer is decoded."""
        if name in self.held:
            return np.ascontiguousarray(self.held[name])
        layer, _, part = name.rpartition(".")
        if part == "weight":
            return self._whole(layer)
        if part == "bias":
            return self.matrix(f"{layer}.stored_bias")[0]
        matrix = self.matrix(f"{layer}.{part}")  # the factors of a low-rank layer
        return np.ascontiguousarray(matrix.T) if part == "first" else matrix

    def multiplied_in(self, name: str) -> str | None:
        """The precision of products with a weight, where its layer is stored for one."""
        layer, _, part = name.rpartition(".")
        what = self.stored.get(f"{layer}.stored") if part == "weight" else None
        return None if what is None else PRECISIONS.get(what.storage)

    def _whole(self, layer: str) -> np.ndarray:
        """The weight of a compressed linear layer that is served as one matrix."""
        if f"{layer}.left" in self.stored:
            left, right = self.matrix(f"{layer}.left"), self.matrix(f"{layer}.right")
            p, q = left.shape[1], right.shape[1]
            left, right = left.reshape(q, p, p), right.reshape(p, q, q)
            return np.einsum("koi,ikq->okiq", left, right).reshape(p * q, p * q)
        weight = self.matrix(f"{layer}.stored")
        if f"{layer}.first" not in self.stored:
            return weight
        product: np.ndarray = self.matrix(f"{layer}.second") @ self.matrix(f"{layer}.first").T
        return weight + product

    def matrix(self, name: str) -> np.ndarray:
        """A StoredRows module as float32 [rows, width]."""
        what = self.stored[name]
        if what.storage == "float32":
            return np.ascontiguousarray(self.held[f"{name}.stored"])
        stored, grid, held = self._rows(name, -1)
        codes = np.empty((what.rows, what.width), np.float32)
        native.needed().embedcomp_rows(ctypes.byref(stored), 0, what.rows, codes.ctypes.data)
        del held
        return codes if grid is None else codes * grid[0] + grid[1]

    def table(self, name: str) -> Rows:
        """What a lookup reads of a table."""
        table = self.tables[name]
        padding = -1 if table.padding_idx is None else table.padding_idx
        if not table.stored:
            weight = self.held[f"{name}.weight"]
            stored = native.Stored(
                rows=_address(weight),
                row_bytes=4 * table.dim,
                num_ids=table.rows,
                kind=native.KINDS["float32"],
                width=table.dim,
                padding=padding,
                last=table.rows - 1,
            )
            return Rows(stored, table.dim, (weight,), None, None)
        stored, grid, held = self._rows(f"{name}.stored", padding)
        stored.num_ids = table.rows
        places = self.held.get(f"{name}.index.places")
        if places is not None:
            stored.map, stored.map_bytes = _address(places), places.itemsize
            held += (places,)
        width = self.stored[f"{name}.stored"].width
        codes = decoder = None
        if grid is not None:
            codes = np.concatenate([np.diag(grid[0]), grid[1:2]]).astype(np.float64)
        if table.decodes:
            weight = self._decoder(name, table, width)
            counted = np.eye(width + 1, width) if codes is None else codes
            decoder = counted @ weight
            bias = f"{name}.decode.bias"  # under this name in artifacts of the first formats
            if bias in self.held or f"{name}.decode.stored_bias" in self.stored:
                decoder[-1] += self.weight(bias)
        else:
            decoder = codes
        return Rows(stored, width, held, decoder, codes)

    def _decoder(self, name: str, table: Table, width: int) -> np.ndarray:
        """What codes are multiplied by, float64 [k, dim]."""
        if table.decodes == "scatter":
            return np.eye(table.dim)[self.held[f"{name}.decode.columns"].astype(np.int64)]
        weight = self.matrix(f"{name}.decode.stored").astype(np.float64)
        if table.decodes == "residual":
            return np.concatenate([weight, np.eye(table.dim)])
        return weight[:width]  # the rows of a shared decoder that this table uses

    def _rows(
        self, name: str, padding: int
    ) -> tuple[native.Stored, np.ndarray | None, tuple[Any, ...]]:
        """How to read a StoredRows module, its scales and offsets, and what must be kept."""
        what, rows = self.stored[name], self.held[f"{name}.stored"]
        if what.storage == "csr":
            return self._csr(name, padding)
        if what.tiers:
            return self._tiered(name, padding)
        grid, codes = self.held.get(f"{name}.grid"), parsed(what.storage)
        kind = kind_of(what.storage)
        stored = native.Stored(
            rows=_address(rows),
            row_bytes=rows.shape[1] * rows.itemsize,
            num_ids=what.rows,
            kind=native.KINDS[kind],
            width=what.width,
            padding=padding,
            last=what.rows - 1,
        )
        if codes is not None:
            assert grid is not None
            return stored, None, (rows, *_name_words(stored, codes, grid))
        if grid is None:
            return stored, None, (rows,)
        grid = as_floats(grid)
        if kind == "column_mixed":
            return stored, grid[:2], (rows, *_place_codes(stored, grid[2].astype(np.int32)))
        return stored, grid, (rows,)

    def _tiered(self, name: str, padding: int) -> tuple[native.Stored, None, tuple[Any, ...]]:
        """How to read rows in tiers: by tier, codes that name a number each."""
        what = self.stored[name]
        rows, grids = self.held[f"{name}.stored"], as_floats(self.held[f"{name}.grid"])
        tiers = (native.Stored * len(what.tiers))()
        held: tuple[Any, ...] = (rows, tiers)
        place = _place_windows if what.storage == "trellis" else _place_numbers
        at, first = _address(rows), 0
        for tier, (last, size), grid in zip(tiers, what.tiers, grids, strict=True):
            tier.rows, tier.num_ids, tier.last = at, last - first, last
            tier.kind, tier.width, tier.padding = native.KINDS["codebook"], what.width, -1
            taken, kept = place(tier, size, grid)
            held += kept
            at, first = at + taken, last
        stored = native.Stored(
            rows=_address(rows),
            row_bytes=1,
            num_ids=what.rows,
            kind=native.KINDS["tiered"],
            width=what.width,
            padding=padding,
            last=what.rows - 1,
            tiers=ctypes.addressof(tiers),
        )
        return stored, None, held

    def _csr(self, name: str, padding: int) -> tuple[native.Stored, None, tuple[Any, ...]]:
        """How to read compressed sparse rows."""
        what = self.stored[name]
        held = tuple(self.held[f"{name}.{part}"] for part in ("starts", "columns", "stored"))
        starts, columns, values = held
        stored = native.Stored(
            rows=_address(starts),
            row_bytes=starts.itemsize,
            num_ids=what.rows,
            kind=native.KINDS[f"csr{8 * columns.itemsize}"],
            width=what.width,
            padding=padding,
            last=what.rows - 1,
            columns=_address(columns),
            values=_address(values),
        )
        return stored, None, held


def as_floats(array: np.ndarray) -> np.ndarray:
    """Floats of any kind as float32; those of no kind that numpy has are bits of bfloat16."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def kind_of(storage: str) -> str:
    """How the engine reads rows of a storage, as in native.KINDS."""
    codes = parsed(storage)
    if codes is not None:
        return "atoms" if codes.kind == "sparse" else "codebook"
    return "column_mixed" if storage.startswith("column_mixed") else storage


def _place_codes(stored: native.Stored, bits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Say where codes of so many bits each stand; gives what must be kept."""
    starts = bits.cumsum() - bits
    places = [np.asarray(place, np.int32) for place in (starts // 8, starts % 8, (1 << bits) - 1)]
    stored.byte, stored.bit, stored.mask = (_address(place) for place in places)
    return tuple(places)


def _name_words(stored: native.Stored, codes: Codes, grid: np.ndarray) -> tuple[Any, ...]:
    """Say which floats codes stand for; gives what must be kept."""
    if codes.kind == "sparse":
        atoms = np.zeros((MOST_ATOMS, stored.width), np.float32)  # whatever a byte names is there
        atoms[: codes.words] = grid[:-1].astype(np.float32) / np.float32(LARGEST)
        stored.words, stored.parts = _address(atoms), codes.parts
        return (atoms,)
    edges = codes.edges(stored.width)
    groups = len(edges) - 1
    if codes.kind == "product":  # each group's words, one after another
        parts = [grid[:-1, first:last].ravel() for first, last in pairwise(edges)]
        words = np.concatenate([np.empty(0), *parts]).astype(np.float32)
        starts = codes.words * np.array(edges[:-1], np.int32)
    else:
        words, starts = grid.astype(np.float32), np.zeros(groups, np.int32)
    held = words, np.array(edges, np.int32), starts
    stored.words, stored.first, stored.at = (_address(array) for array in held)
    stored.parts, stored.narrow = groups, groups == stored.width
    return *held, *_place_codes(stored, np.full(groups, codes.bits, np.int32))


def _place_numbers(
    stored: native.Stored, row_bytes: int, grid: np.ndarray
) -> tuple[int, tuple[Any, ...]]:
    """Say which float each code of a column stands for; gives all bytes, and what must be kept.

    Args:
        grid: [3, width], scales, offsets and bits.
    """
    bits = grid[2].astype(np.int32)
    counts = 1 << bits
    codes = np.concatenate([np.arange(count, dtype=np.float32) for count in counts])
    words = codes * np.repeat(grid[0], counts) + np.repeat(grid[1], counts)
    starts = (counts.cumsum() - counts).astype(np.int32)
    stored.words, stored.at, stored.parts = _address(words), _address(starts), len(bits)
    stored.row_bytes, stored.narrow = row_bytes, 1
    if not row_bytes:  # nothing is read of such a row, but its first byte
        stored.rows = _address(words)
    held = _place_codes(stored, bits)
    held[0][bits == 0] = 0  # which may lie beyond the row
    return stored.num_ids * row_bytes, (words, starts, *held)


def _place_windows(
    stored: native.Stored, row_bits: int, grid: np.ndarray
) -> tuple[int, tuple[Any, ...]]:
    """The same for windows of a trellis, which lie elsewhere for each bit that a row begins with.

    Rows are read from the byte before them on, and a byte beyond: a table has both.
    """
    count, width = 1 << windows.BITS, stored.width
    at = np.arange(8, dtype=np.int32)[:, None] + windows.places(grid)  # [8, width]
    starts = np.tile(count * np.arange(width, dtype=np.int32), (8, 1))
    masks = np.full_like(starts, count - 1)
    held = windows.words(grid), starts, at // 8, at % 8, masks
    stored.words, stored.at, stored.byte, stored.bit, stored.mask = map(_address, held)
    stored.parts, stored.narrow = width, 1
    stored.row_bits, stored.row_bytes = row_bits, (row_bits + 7) // 8 + 2 if row_bits else 0
    return -(-stored.num_ids * row_bits // 8), held


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
