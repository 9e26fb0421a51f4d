"""The engine's operations: what each reads, its arguments in the engine, and its work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from embedcomp.engine import cost
from embedcomp.engine.cost import Counts
from embedcomp.engine.pack import Packed
from embedcomp.kernels import native
from embedcomp.storage.kind import Reads

Piece = tuple[int, int, int]  # buffer, first column, number of columns
NOTHING: Piece = (-1, 0, 0)


@dataclass(kw_only=True)
class Op(ABC):
    """An operation before it is written down for the engine.

    stage: USER or ITEM (program.py).
    out, out_at: buffer that it fills, and the first column there.
    x, y: what it reads.
    scratch: floats a row that it needs meanwhile.
    """

    kind: ClassVar[int]

    stage: int
    out: int
    out_at: int = 0
    x: list[Piece] = field(default_factory=list)
    y: list[Piece] = field(default_factory=list)
    scratch: int = 0

    @property
    def reads(self) -> set[int]:
        """Buffers."""
        return {buffer for buffer, _, _ in (*self.x, *self.y)}

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """Fields of the engine's structure (native.Op); arrays are pointers to their numbers."""

    @abstractmethod
    def counts(self, rows: int, ids: float = 1) -> Counts:
        """Work of a call that scores `rows` rows.

        Args:
            ids: of a bag.
        """

    def products(self) -> tuple[str, int]:
        """The precision of its multiplications with an addition each, and how many a row has."""
        return "float32", 0

    @property
    def layer(self) -> str:
        """The module whose numbers it holds; empty: it holds none of a module's."""
        return ""


@dataclass(kw_only=True)
class LookUp(Op):
    """Rows of a table, pooled.

    feature: its number.
    width: numbers that are looked up for an id.
    ids: of a bag in a matrix.
    row: the work of one.
    counted: the last column is how often a bag has the decoder's bias.
    mean: of a bag's rows, not their sum.
    """

    kind = native.LOOK_UP

    feature: int
    width: int
    table: native.Stored
    row: Reads
    ids: int
    counted: bool
    mean: bool

    def told(self) -> dict[str, Any]:
        numbers = {"which": self.feature, "times": self.ids}
        return {**numbers, "table": self.table, "counted": self.counted, "mean": self.mean}

    def counts(self, rows: int, ids: float = 1) -> Counts:
        return cost.look_up(rows, self.row, ids * self.ids)


@dataclass(kw_only=True)
class Input(Op):
    """Columns of a dense input, from `column` on."""

    kind = native.INPUT

    which: int
    column: int
    width: int

    def told(self) -> dict[str, Any]:
        which = 2 * self.which + self.stage
        return {"which": which, "inputs": self.column, "outputs": self.width}

    def counts(self, rows: int, ids: float = 1) -> Counts:
        return cost.blocks(rows) + {"inputs": rows, "input numbers": rows * self.width}


@dataclass(kw_only=True)
class Linear(Op):
    """Products with a weight [outputs, inputs].

    times: vectors a row.
    form: what is multiplied, as in native.FORMATS.
    init: buffer that the sum begins with, or -1.
    counted: how often a row has the bias; no buffer: once.
    name: of the graph's weight, or of a table's decoder.
    brain_out: put pairs of bfloat16 out.
    """

    kind = native.LINEAR

    weight: Packed
    bias: np.ndarray | None
    inputs: int
    outputs: int
    times: int
    form: str
    init: int
    counted: Piece
    relu: bool
    name: str
    brain_out: bool = False

    @property
    def reads(self) -> set[int]:
        others = self.init, self.counted[0]
        return super().reads | {buffer for buffer in others if buffer >= 0}

    def told(self) -> dict[str, Any]:
        return {
            "weight": self.weight.words,
            "scales": self.weight.scales,
            "sums": self.weight.sums,
            "bias": self.bias,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "times": self.times,
            "format": native.FORMATS.index(self.form),
            "init": self.init,
            "counts": self.counted,
            "relu": self.relu,
            "brain_out": self.brain_out,
        }

    def counts(self, rows: int, ids: float = 1) -> Counts:
        shape = {"inputs": self.inputs, "outputs": self.outputs, "times": self.times}
        return cost.linear(rows, **shape, form=self.form, pieces=len(self.x))

    def products(self) -> tuple[str, int]:
        return self.form, self.times * self.inputs * self.outputs

    @property
    def nbytes(self) -> int:
        """Bytes of its weight and its bias, as they are packed."""
        return sum(array.nbytes for array in self.told().values() if isinstance(array, np.ndarray))

    @property
    def layer(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(kw_only=True)
class Dots(Op):
    """Dot products of the vectors of x with those of y, or with each other.

    vectors, others: of x and of y.
    width: of one.
    wanted: products that are put out.
    runs: int32 [runs, 2], place (in rows of padded y) and number of what is put out.
    used: uint8 [tiles of x, panels of y], whether any product is put out.
    brain: they are multiplied as bfloat16; brain_in: and are pairs of it already.
    room: floats for the products of one row.
    """

    kind = native.DOTS

    vectors: int
    others: int
    width: int
    wanted: int
    runs: np.ndarray
    used: np.ndarray
    brain: bool
    brain_in: bool
    room: int

    @property
    def form(self) -> str:
        return native.FORMATS[self.brain]

    def told(self) -> dict[str, Any]:
        return {
            "times": self.vectors,
            "outputs": self.others,
            "inputs": self.width,
            "format": int(self.brain),
            "brain_in": self.brain_in,
            "runs": len(self.runs),
            "run": self.runs,
            "used": self.used,
        }

    def counts(self, rows: int, ids: float = 1) -> Counts:
        found = _operands(self, rows) + cost.dots(
            rows,
            vectors=self.vectors,
            others=self.others,
            width=self.width,
            tiles=int(self.used.sum()),
            runs=len(self.runs),
            form=self.form,
        )
        if self.brain and not self.brain_in:
            numbers = (self.vectors + self.others) * self.width
            found[f"{self.form} inputs"] += rows * numbers
        return found

    def products(self) -> tuple[str, int]:
        return self.form, self.wanted * self.width


@dataclass(kw_only=True)
class Unary(Op):
    """A function of native.UNARIES of each number; low and high are its parameters."""

    kind = native.UNARY

    name: str
    width: int
    low: float = 0
    high: float = 0
    brain_out: bool = False  # of a copy: put pairs of bfloat16 out

    def told(self) -> dict[str, Any]:
        return {
            "which": native.UNARIES.index(self.name),
            "outputs": self.width,
            "low": self.low,
            "high": self.high,
            "brain_out": self.brain_out,
        }

    def counts(self, rows: int, ids: float = 1) -> Counts:
        return _operands(self, rows) + cost.function(rows, self.name, self.width)


@dataclass(kw_only=True)
class Binary(Op):
    """A function of native.BINARIES of two numbers each."""

    kind = native.BINARY

    name: str
    width: int

    def told(self) -> dict[str, Any]:
        return {"which": native.BINARIES.index(self.name), "outputs": self.width}

    def counts(self, rows: int, ids: float = 1) -> Counts:
        return _operands(self, rows) + cost.function(rows, self.name, self.width)


@dataclass(kw_only=True)
class Sum(Op):
    """The sum of `terms` vectors that lie beside each other."""

    kind = native.SUM

    terms: int
    width: int

    def told(self) -> dict[str, Any]:
        return {"times": self.terms, "outputs": self.width}

    def counts(self, rows: int, ids: float = 1) -> Counts:
        numbers = rows * self.width * self.terms
        return _operands(self, rows) + {"single rows": rows, "summed numbers": numbers}


def _operands(op: Op, rows: int) -> Counts:
    """Work of an operation, with that of copying what it reads together."""
    found = cost.blocks(rows)
    for side in (op.x, op.y):
        found += cost.brought(rows, len(side), sum(width for _, _, width in side))
    return found


def counts(ops: Iterable[Op], rows: int, ids: Mapping[int, float] | None = None) -> Counts:
    """Work of a call that scores `rows` rows, each with its own user, by these operations.

    Args:
        ids: of a bag, by number of its feature; those that are not there have one.
    """
    found = Counts({"calls": 1, "rows": rows})
    for op in ops:
        found += op.counts(rows, (ids or {}).get(op.feature, 1) if isinstance(op, LookUp) else 1)
    return found
