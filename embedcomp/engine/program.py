"""The engine's program: buffers and operations, and where the buffers lie in memory."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedcomp.engine.ops import NOTHING, Dots, Linear, Op, Piece
from embedcomp.engine.pack import BLOCK, LANES
from embedcomp.engine.tensors import TableRows, bytes_by_name
from embedcomp.kernels import native

ITEM, USER = 0, 1  # stages


@dataclass
class Buffer:
    """Numbers of a row: its own, the user's, or the same for all.

    name: of the graph's weight, where it is the same for all.
    """

    width: int
    stage: int
    constant: np.ndarray | None = None
    name: str = ""


@dataclass(frozen=True)
class Work:
    """What a row costs: multiplications (each with an addition) by stage and format, and bytes."""

    item_products: Mapping[str, int]
    user_products: Mapping[str, int]
    weight_bytes: int  # read by every block of rows

    @classmethod
    def of(cls, ops: Sequence[Op]) -> Work:
        """The work of a program's operations."""
        products: dict[int, Counter[str]] = {ITEM: Counter(), USER: Counter()}
        for op in ops:
            form, number = op.products()
            if number:
                products[op.stage][form] += number
        weights = sum(op.weight.words.nbytes for op in ops if isinstance(op, Linear))
        return cls(dict(products[ITEM]), dict(products[USER]), weights)


class Program:
    """What the engine runs, with everything that it points to.

    resident: bytes of the numbers that it reads, by the module that they are of: stored rows and
        index maps where they lie in the artifact's file, and what lowering made: packed weights,
        biases, decoders, codebooks. Under "" are those of no module. Each array counts once.
    """

    def __init__(
        self,
        buffers: Sequence[Buffer],
        ops: Sequence[Op],
        out: int,
        tables: Mapping[str, TableRows],
    ):
        self.held: list[Any] = [(table.stored, table.held) for table in tables.values()]
        self.work, self.ops = Work.of(ops), tuple(ops)
        self.resident = _resident(buffers, ops, tables)
        self.tables = tables
        self.rows = {name: table.stored.num_ids for name, table in tables.items()}
        places = _places(buffers, ops, out)
        packed = (native.Buffer * len(buffers))()
        for struct, buffer, at in zip(packed, buffers, places.at, strict=True):
            struct.at, struct.width, struct.stage = at, buffer.width, buffer.stage
            if buffer.constant is not None:
                struct.constant = self._hold(buffer.constant)
        users, items = ([self._op(op) for op in ops if op.stage == stage] for stage in (USER, ITEM))
        user_ops, item_ops = (native.Op * len(users))(*users), (native.Op * len(items))(*items)
        self.held += [packed, user_ops, item_ops]
        self.struct = native.Program(
            user_ops=user_ops,
            item_ops=item_ops,
            buffers=packed,
            user_count=len(users),
            item_count=len(items),
            user_width=places.user,
            item_width=places.item,
            scratch=max((op.scratch for op in ops), default=0) + 1,
            dots=max((op.room for op in ops if isinstance(op, Dots)), default=0),
            out=out,
            block=BLOCK,
        )
        self.splits = bool(users)

    def _op(self, op: Op) -> native.Op:
        values = {name: of for name, of in op.told().items() if of is not None}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = self._hold(value)
        table, counted = values.pop("table", None), native.Piece(*values.pop("counts", NOTHING))
        defaults = {"init": -1, "times": 1, "counts": counted}
        struct = native.Op(kind=op.kind, out=op.out, out_at=op.out_at, **defaults | values)
        struct.x, struct.x_pieces = self._pieces(op.x), len(op.x)
        struct.y, struct.y_pieces = self._pieces(op.y), len(op.y)
        if table is not None:
            struct.table = ctypes.pointer(table)
        return struct

    def _pieces(self, pieces: Sequence[Piece]) -> Any:
        array = (native.Piece * max(len(pieces), 1))(*(native.Piece(*piece) for piece in pieces))
        self.held.append(array)
        return array

    def _hold(self, array: np.ndarray) -> int:
        self.held.append(array)
        return int(array.ctypes.data)


def _resident(
    buffers: Sequence[Buffer], ops: Sequence[Op], tables: Mapping[str, TableRows]
) -> dict[str, int]:
    arrays = [(name, held) for name, table in tables.items() for held in table.held]
    arrays += [(op.layer, held) for op in ops for held in op.told().values()]
    arrays += [(buffer.name.rpartition(".")[0], buffer.constant) for buffer in buffers]
    return bytes_by_name((n, a) for n, a in arrays if isinstance(a, np.ndarray))


@dataclass(frozen=True)
class _Places:
    at: list[int]
    user: int  # floats a row
    item: int


def _places(buffers: Sequence[Buffer], ops: Sequence[Op], out: int) -> _Places:
    """Where each buffer lies; a row's own are reused when nothing reads them any more."""
    last = {buffer: i for i, op in enumerate(ops) for buffer in (op.out, *op.reads)}
    at = [0] * len(buffers)
    free: list[tuple[int, int]] = []  # (first, width), sorted
    item = 0
    written: dict[int, int] = {}
    for i, op in enumerate(ops):
        written.setdefault(op.out, i)
    user = 0
    for i, buffer in enumerate(buffers):
        if buffer.stage == USER and i in written:
            at[i], user = user, user + _padded(buffer.width)
    for i, op in enumerate(ops):
        if op.stage == ITEM and written[op.out] == i:
            width = _padded(buffers[op.out].width)
            hole = next((h for h in free if h[1] >= width), None)
            if hole is None:
                at[op.out], item = item, item + width
            else:
                free.remove(hole)
                at[op.out] = hole[0]
                if hole[1] > width:
                    free.append((hole[0] + width, hole[1] - width))
        for done in {op.out, *op.reads}:
            held = buffers[done]
            if held.stage == ITEM and last[done] == i and done != out:
                free.append((at[done], _padded(held.width)))
        free = _merged(free)
    return _Places(at, user, item)


def _merged(free: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, width in sorted(free):
        if merged and sum(merged[-1]) == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + width)
        else:
            merged.append((first, width))
    return merged


def _padded(width: int) -> int:
    """Whole vectors, so that buffers begin on a cache line."""
    return -(-width // LANES) * LANES
