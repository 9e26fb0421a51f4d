"""The tensors of an artifact, where they lie in its file, and what compressed layers mean."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedcomp.errors import BadArtifact
from embedcomp.kernels import native
from embedcomp.storage import kinds
from embedcomp.storage.kind import Kind, Located, Reads
from embedcomp.storage.probes import Probes


def bytes_by_name(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, int]:
    """Bytes of arrays by name; one that is there twice counts once, to its first name."""
    found: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    for name, array in arrays:
        place = native.address(array), array.nbytes
        found[name] = found.get(name, 0) + (0 if place in seen else array.nbytes)
        seen.add(place)
    return found


def bytes_by_layer(tensors: Mapping[str, np.ndarray], layers: Iterable[str]) -> dict[str, int]:
    """Bytes of tensors by the layer that they lie in; else by the module that has them."""
    inside = [(f"{layer}.", layer) for layer in layers]

    def layer(tensor: str) -> str:
        own = (name for start, name in inside if tensor.startswith(start))
        return next(own, tensor.rpartition(".")[0])

    return bytes_by_name((layer(name), array) for name, array in tensors.items())


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A StoredRows module: how its tensors are to be read."""

    kind: Kind
    rows: int
    width: int

    def to_dict(self) -> dict[str, Any]:
        return {"storage": self.kind.described, "rows": self.rows, "width": self.width}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], nonzeros: int | None = None) -> StoredMatrix:
        """What `to_dict` gave; artifacts of format 2 have tiers beside the storage's name.

        Args:
            nonzeros: of sparse rows, which those artifacts have elsewhere.
        """
        storage, tiers = values["storage"], values.get("tiers") or ()
        if storage == "csr":
            storage = {"name": storage, "nonzeros": nonzeros}
        elif tiers:
            ends, sizes = zip(*tiers, strict=True)
            unit = "row_bits" if storage == "trellis" else "row_bytes"
            storage = {"name": storage, "ends": ends, unit: sizes}
        return cls(kind=kinds.of(storage), rows=values["rows"], width=values["width"])


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
    probes: Mapping[str, Any] | None = None  # formulas of the rows that an id reads, if it has them


@dataclass(frozen=True)
class TableRows:
    """What the engine reads of a table: rows [k], and the map from them to what it stands for.

    reads: work of a row.
    decoder: float64 [k + 1, dim], from a bag's summed codes and how often it has the bias, to its
        row; None: the codes are the row.
    codes: float64 [k + 1, k], from the same to the codes as numbers; None: they are them.
    """

    stored: native.Stored
    width: int
    reads: Reads
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
        self._rows_of_tables: dict[Any, Located] = {}

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
        return None if what is None or what.kind.precision == "float32" else what.kind.precision

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
        found = self._located(name, -1)
        codes = np.empty((what.rows, what.width), np.float32)
        native.needed().embedcomp_rows(ctypes.byref(found.rows), 0, what.rows, codes.ctypes.data)
        return codes if found.grid is None else codes * found.grid[0] + found.grid[1]

    def table(self, name: str) -> TableRows:
        """What a lookup reads of a table.

        Raises:
            BadArtifact: it would read beyond the stored rows.
        """
        table = self.tables[name]
        padding = -1 if table.padding_idx is None else table.padding_idx
        if not table.stored:
            floats, weight = kinds.named("float32"), self.held[f"{name}.weight"]
            found = floats.located({"stored": weight}, table.rows, table.dim, padding)
            reads = floats.reads(table.rows, table.dim)
            return TableRows(found.rows, table.dim, reads, found.held, None, None)
        found, what = self._of_tables(f"{name}.stored"), self.stored[f"{name}.stored"]
        stored, grid = native.Stored.from_buffer_copy(found.rows), found.grid
        stored.num_ids, stored.padding = table.rows, padding
        width, reads = what.width, what.kind.reads(what.rows, what.width)
        if table.probes is None:
            work, kept = self.index(name, stored)
            reads = replace(reads, index=work)
        else:
            probes = Probes.of(table.probes)
            if probes.end > what.rows:
                raise BadArtifact(
                    f"{name} reads stored rows up to {probes.end - 1:,}, but has {what.rows:,}"
                )
            width, reads = probes.width(width), probes.reads(reads, what.kind.scaled)
            grid, kept = probes.place(stored, grid)
        held = (*found.held, *kept)
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
        return TableRows(stored, width, reads, held, decoder, codes)

    def _of_tables(self, stored: str) -> Located:
        """Where the rows of tables are: in one place for all that read the same."""
        what, prefix = self.stored[stored], f"{stored}."
        own = sorted(n for n in self.held if n.startswith(prefix))
        key = what, *(native.address(self.held[n]) for n in own)
        if key not in self._rows_of_tables:
            self._rows_of_tables[key] = self._located(stored, -1)
        return self._rows_of_tables[key]

    def index(self, name: str, at: native.Stored) -> tuple[str | None, tuple[np.ndarray, ...]]:
        """Say in `at` where a table's index is, as the modules of storage/index.py hold it.

        Returns:
            The kind of work that reading it is, None where there is none, and arrays that must be
            kept.
        """
        places = self.held.get(f"{name}.index.places")
        if places is not None:
            at.map, at.map_bytes = native.address(places), places.itemsize
            return "mapped", (places,)
        blocks = self.held.get(f"{name}.index.blocks")
        if blocks is None:
            return None, ()
        firsts = self.held[f"{name}.index.firsts"]
        at.map, at.firsts = native.address(blocks), native.address(firsts)
        at.index_tiers = len(firsts)
        return "ranked", (blocks, firsts)

    def _decoder(self, name: str, table: Table, width: int) -> np.ndarray:
        """What codes are multiplied by, float64 [k, dim]."""
        if table.decodes == "scatter":
            return np.eye(table.dim)[self.held[f"{name}.decode.columns"].astype(np.int64)]
        weight = self.matrix(f"{name}.decode.stored").astype(np.float64)
        if table.decodes == "residual":
            return np.concatenate([weight, np.eye(table.dim)])
        return weight[:width]  # the rows of a shared decoder that this table uses

    def _located(self, name: str, padding: int) -> Located:
        """Where a StoredRows module's rows are."""
        what, prefix = self.stored[name], f"{name}."
        held = {n.removeprefix(prefix): a for n, a in self.held.items() if n.startswith(prefix)}
        return what.kind.located(held, what.rows, what.width, padding)
