"""Rows in fbgemm's layouts, looked up and pooled by fbgemm's operator.

It reads float32, float16 and row_int8, 4 and 2. Of rows of integers it wants the scale and the
offset in front of the codes, and stored rows have them behind, so of those it is given a copy in
memory, made when they are opened. Floats of a whole table are read where they lie; those of slots,
of which each lies in a file of its own, are copied too, since the operator counts rows from one
place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcomp.errors import BadSettings
from embedcomp.kernels import routing
from embedcomp.kernels.native import address
from embedcomp.storage.kind import Kind
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

TYPES = {"float32": 0, "float16": 1, "row_int8": 2, "row_int4": 3, "row_int2": 4}  # fbgemm's
BY_TYPE = ("row_int2", "row_int4", "row_int8", "float16", "float32")  # as it takes widest rows
HOST = 3  # where it is told that rows are
COPIED, LYING = 0, 1  # the memories
ABOUT = 4  # bytes of scale and offset
BEYOND = 64  # bytes behind the last copied row, which a vector may be read up to
MESSAGES = 64  # sequences of tables that are kept in the operator's form
MOST_IDS = 1 << 32  # of a table, whose ids travel in 32 bits


def reads(kind: Kind) -> bool:
    """Whether the operator reads rows of a kind."""
    return kind.name in TYPES


@dataclass(frozen=True)
class Rows:
    """Stored rows of a table: arrays [n, ...] one after another, each of its own slot.

    in_place: there is but one array, which may be read where it lies if its layout is fbgemm's.
    """

    kind: Kind
    width: int
    arrays: Sequence[np.ndarray]
    in_place: bool = False

    @property
    def row_bytes(self) -> int:
        return self.arrays[0][:1].nbytes if len(self.arrays[0]) else self.arrays[0].itemsize

    @property
    def of_integers(self) -> bool:
        return self.kind.name.startswith("row_int")

    @property
    def copied(self) -> bool:
        return self.of_integers or not self.in_place

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def given(self) -> int:
        """Numbers that the operator gives of a row: a few more where the row is padded."""
        if not self.of_integers:
            return self.width
        return (self.row_bytes - ABOUT) * 8 // int(self.kind.name.removeprefix("row_int"))

    @property
    def firsts(self) -> np.ndarray:
        """Number of each array's first row, int64 [arrays]."""
        sizes = [len(array) for array in self.arrays]
        return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)

    def copy_to(self, out: np.ndarray) -> None:
        """Write the rows in fbgemm's layout, uint8 [nbytes]."""
        at = 0
        for array in self.arrays:
            rows = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)
            place = out[at : at + array.nbytes].reshape(rows.shape)
            if self.of_integers:
                place[:, :ABOUT], place[:, ABOUT:] = rows[:, -ABOUT:], rows[:, :-ABOUT]
            else:
                place[:] = rows
            at += array.nbytes


class Fbgemm:
    """The operator on some tables; safe to use from several threads.

    copied_bytes: in memory, of rows that are not read where they lie.

    Raises:
        BadSettings: torch or fbgemm is missing.
    """

    def __init__(self, tables: Mapping[int, Rows]):
        try:
            import fbgemm_gpu  # noqa: F401
            import torch as _  # noqa: F401
        except ImportError as error:
            raise BadSettings(
                f"lookups by fbgemm need torch and fbgemm-gpu-cpu, but {error.name} is missing; "
                "install embedcomp with what trains (`pip install embedcomp`, without the extra "
                "`serve`), or leave --lookups at auto"
            ) from error
        self._run = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function
        self.tables = tables
        copied = [table for table in tables.values() if table.copied]
        self.copied_bytes = sum(table.nbytes for table in copied)
        memory = np.zeros(self.copied_bytes + BEYOND, np.uint8)
        lying = [table.arrays[0] for table in tables.values() if not table.copied]
        low = min(map(address, lying), default=0)
        high = max((address(array) + array.nbytes for array in lying), default=0)
        self._held = lying
        self._memories = torch.from_numpy(memory), _tensor(low, high - low, "uint8")
        self._places: dict[int, tuple[int, int]] = {}  # where a table is, and from which byte on
        at = 0
        for number, table in tables.items():
            if table.copied:
                table.copy_to(memory[at : at + table.nbytes])
                self._places[number] = COPIED, at
                at += table.nbytes
            else:
                self._places[number] = LYING, address(table.arrays[0]) - low
        self._about = lru_cache(MESSAGES)(self._of_message)

    def _of_message(self, numbers: bytes) -> list[_Run]:
        """What the operator is told of the tables of a message's parts.

        It takes a table to end where the next one begins, so each call of it has tables of one
        memory in the order in which they lie there.
        """
        parts = np.frombuffer(numbers, np.int32).tolist()
        runs: list[list[int]] = []
        for before, part in zip([None, *parts], parts, strict=False):
            goes_on = before is not None and self._places[before][0] == self._places[part][0]
            if goes_on and self._places[before][1] <= self._places[part][1]:
                runs[-1].append(part)
            else:
                runs.append([part])
        return [self._run_of(run) for run in runs]

    def _run_of(self, parts: Sequence[int]) -> _Run:
        tables, places = [self.tables[n] for n in parts], [self._places[n] for n in parts]
        ends = np.cumsum([0, *(table.given for table in tables)])
        widest = [
            max((table.given for table in tables if table.kind.name == name), default=0)
            for name in BY_TYPE
        ]
        about = (
            torch.full((len(parts),), HOST, dtype=torch.int32),
            torch.tensor([byte for _, byte in places], dtype=torch.int64),
            torch.tensor([TYPES[table.kind.name] for table in tables], dtype=torch.uint8),
            torch.from_numpy(ends.astype(np.int32)),
            int(ends[-1]),
            *widest,
        )
        return _Run(len(parts), self._memories[places[0][0]], about)

    def look_up(self, asked: routing.Numbered) -> Tensor:
        """Pooled rows float32 [bags, numbers of all parts]."""
        runs = self._about(ctypes.string_at(asked.tables, 4 * asked.parts))
        rows = _tensor(asked.rows, asked.count, "int64")
        offsets = _tensor(asked.offsets, asked.parts * asked.bags + 1, "int64")
        weights = _tensor(asked.weights, asked.count, "float32") if asked.weights else None
        if len(runs) == 1:
            return self._found(runs[0], rows, offsets, weights)
        found, at = [], 0
        for run in runs:
            bags = offsets[at * asked.bags : (at + run.parts) * asked.bags + 1]
            own = slice(int(bags[0]), int(bags[-1]))
            weighted = None if weights is None else weights[own]
            found.append(self._found(run, rows[own], bags - bags[0], weighted))
            at += run.parts
        return torch.cat(found, 1)

    def _found(self, run: _Run, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        found: Tensor = self._run(
            run.memory, run.memory, *run.about, rows, offsets, 0, weights, 0, row_alignment=1
        )
        return found


@dataclass(frozen=True)
class _Run:
    """Parts of a message that one call of the operator looks up.

    memory: uint8, with their tables.
    about: what else it is told of these.
    """

    parts: int
    memory: Tensor
    about: tuple[Any, ...]


def _tensor(at: int, count: int, type: str) -> Tensor:
    """Numbers that are in memory from an address on."""
    if not count:
        return torch.empty(0, dtype=getattr(torch, type))
    size = count * np.dtype(type).itemsize
    raw = (ctypes.c_uint8 * size).from_address(at)
    return torch.frombuffer(raw, dtype=getattr(torch, type))
