"""What a program costs: work that is counted, times what a machine takes for a unit of each kind.

Work is counted from an operation's shape as the kernels (kernels.inc) go about it: a product goes
in tiles of rows by panels of columns, a block of rows at a time. So what is planned can be counted
before it exists, by the same functions as a program that is there.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from embedcomp.engine.pack import LANES, PANEL
from embedcomp.engine.program import BLOCK, Op
from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.support.files import replacing

FORMAT = 1  # of a cost model's file; another one where work is counted in another way
TILES = (6, 3, 1)  # rows of a tile, as in kernels.inc
WORDS = {"float32": 1, "bfloat16": 2, "int8": 4}  # inputs in a word
LINE = 64  # bytes that memory gives at once
FAR, DISTANT = 1 << 20, 1 << 25  # bytes of a table beyond which caches near the core do not hold it
SLOW = {
    *("sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "exp", "log", "logit", "softplus", "elu"),
    "power",
}  # functions that the kernels call a number at a time


class Counts(dict[str, float]):
    """How much work there is of each kind; nothing of those that are not there."""

    def __missing__(self, kind: str) -> float:
        return 0.0

    def __add__(self, other: Mapping[str, float]) -> Counts:
        found = Counts(self)
        for kind, number in other.items():
            found[kind] += number
        return found


@dataclass(frozen=True, kw_only=True)
class Reads:
    """How a table is read.

    kind: of stored rows, as in native.KINDS.
    numbers: that a row is made of, without those that are left out as zeros.
    vectors: that they are summed in.
    stored_bytes: of all rows.
    mapped: the stored row of an id is looked up as well.
    """

    kind: str
    numbers: float
    vectors: int
    row_bytes: int
    stored_bytes: int
    mapped: bool = False

    @classmethod
    def of(
        cls,
        kind: str,
        width: int,
        parts: int,
        *,
        row_bytes: int,
        rows: int,
        nonzeros: int = 0,
        mapped: bool = False,
    ) -> Reads:
        """Rows of a kind of native.KINDS.

        Args:
            parts: codes of a row of a codebook, atoms of a row of a dictionary.
            nonzeros: elements of sparse rows.
        """
        each = -(-width // LANES)
        vectors, numbers, stored = each, float(width), rows * row_bytes
        if kind == "codebook":
            vectors = parts * -(-width // max(parts, 1) // LANES)
            kind, vectors = ("clustered", each) if parts == width else (kind, vectors)
        elif kind == "atoms":
            vectors = parts * each
        elif kind.startswith("csr"):
            numbers = nonzeros / max(rows, 1)
            stored += nonzeros * (2 + int(kind.removeprefix("csr")) // 8)
            kind = "csr"  # however wide the columns' numbers are
        elif kind == "column_int8" and width == LANES:
            kind = "column_int8 16"  # which the kernels have a loop of its own for
        return cls(
            kind=kind,
            numbers=numbers,
            vectors=vectors,
            row_bytes=row_bytes,
            stored_bytes=stored,
            mapped=mapped,
        )


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Microseconds of a unit of each kind of work, on one thread of a machine.

    machine: that it was measured on.
    """

    microseconds: Mapping[str, float]
    machine: str = ""

    def save(self, file: Path) -> None:
        with replacing(file) as fresh:
            fresh.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, file: Path) -> CostModel:
        """What was saved.

        Raises:
            BadSettings: the file is not a cost model.
        """
        way_out = "make it with `embedcomp calibrate` on the machine that serves"
        try:
            values = json.loads(file.read_text())
            found = {str(kind): float(taken) for kind, taken in values["microseconds"].items()}
            machine, form = str(values["machine"]), values["format"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadSettings(f"{file} is not a cost model ({error}); {way_out}") from error
        if form != FORMAT:
            raise BadSettings(f"{file} has format {form}, but {FORMAT} is read; {way_out}")
        return cls(microseconds=found, machine=machine)

    def of(self, work: Counts) -> float:
        """Microseconds of so much work.

        Raises:
            BadSettings: there is work of a kind that was not calibrated.
        """
        unknown = sorted(work.keys() - self.microseconds.keys())
        if unknown:
            raise BadSettings(
                f"the cost model does not know what {unknown[0]!r} cost; make it again with "
                "`embedcomp calibrate`"
            )
        return sum(self.microseconds[kind] * number for kind, number in work.items())


def linear(
    rows: int,
    *,
    inputs: int,
    outputs: int,
    form: str = "float32",
    pieces: int = 1,
    times: int = 1,
) -> Counts:
    """Of a linear operation.

    Args:
        form: what is multiplied, as in native.FORMATS.
        pieces: that its inputs are brought together from.
        times: vectors a row.
    """
    words, panels = -(-inputs // WORDS[form]), -(-outputs // PANEL)
    vectors = -(-outputs // LANES)
    found = Counts()
    for block in _blocks(rows):
        groups = _groups(block * times)
        found[f"{form} products"] += block * times * words * vectors
        found[f"{form} loads"] += groups * words * vectors
        found[f"{form} steps"] += groups * words * panels
        found["tiles"] += groups * panels
        found["weights"] += 4 * LANES * words * vectors
        found["operations"] += 1
    if form != "float32":
        found[f"{form} inputs"] += rows * times * inputs
        found[f"{form} rounded"] += rows * times
    return found + _brought(rows, pieces, times * inputs)


def look_up(rows: int, reads: Reads, ids: float = 1) -> Counts:
    """Of a lookup with so many ids a bag."""
    found = Counts({"operations": len(list(_blocks(rows))), "bags": rows})
    found[f"{reads.kind} rows"] += rows * ids
    found[f"{reads.kind} numbers"] += rows * ids * reads.numbers
    found[f"{reads.kind} vectors"] += rows * ids * reads.vectors
    if reads.mapped:
        found["mapped"] += rows * ids
    lines = rows * ids * (1 + (reads.row_bytes - 1) / LINE)
    if reads.stored_bytes > FAR:
        found["far lines"] += lines
    if reads.stored_bytes > DISTANT:
        found["distant lines"] += lines
    return found


def operations(ops: Iterable[Op], rows: int, ids: Mapping[int, float] | None = None) -> Counts:
    """Of a call that scores so many rows, each with its own user, by these operations.

    Args:
        ids: of a bag, by number of its feature; those that are not there have one.
    """
    found = Counts({"calls": 1, "rows": rows})
    for op in ops:
        each = ids.get(op.fields["which"], 1) if ids and op.kind == native.LOOK_UP else 1
        found += operation(op, rows, each)
    return found


def operation(op: Op, rows: int, ids: float = 1) -> Counts:
    """Of one operation of a program."""
    if op.kind == native.LOOK_UP:
        return look_up(rows, reads(op.fields["table"]), ids * op.fields["times"])
    if op.kind == native.LINEAR:
        shape = {name: op.fields[name] for name in ("inputs", "outputs", "times")}
        form = native.FORMATS[op.fields["format"]]
        return linear(rows, **shape, form=form, pieces=len(op.x))
    found = Counts({"operations": len(list(_blocks(rows)))})
    if op.kind == native.INPUT:
        return found + {"inputs": rows, "input numbers": rows * op.fields["outputs"]}
    for side in (op.x, op.y):
        found += _brought(rows, len(side), sum(width for _, _, width in side))
    if op.kind == native.DOTS:
        return found + _dots(op, rows)
    return found + _single(op, rows)


def _single(op: Op, rows: int) -> Counts:
    """Of what the kernels do a row at a time."""
    found, width = Counts({"single rows": rows}), op.fields["outputs"]
    if op.kind == native.SUM:
        return found + {"summed numbers": rows * width * op.fields["times"]}
    names = native.UNARIES if op.kind == native.UNARY else native.BINARIES
    name = names[op.fields["which"]]
    return found + {f"{name if name in SLOW else 'quick'} numbers": rows * width}


def reads(table: native.Stored) -> Reads:
    """How the engine reads a table."""
    kind, rows = _KINDS[table.kind], table.last + 1
    nonzeros = 0
    if kind.startswith("csr"):
        nonzeros = ctypes.cast(table.rows, ctypes.POINTER(ctypes.c_int32))[rows]
    return Reads.of(
        kind,
        table.width,
        table.parts,
        row_bytes=_bytes_in_tiers(table) if kind == "tiered" else table.row_bytes,
        rows=rows,
        nonzeros=nonzeros,
        mapped=bool(table.map),
    )


def _bytes_in_tiers(table: native.Stored) -> int:
    """Of a mean row."""
    tiers = ctypes.cast(table.tiers, ctypes.POINTER(native.Stored))
    total = first = place = 0
    while first <= table.last:
        tier = tiers[place]
        total += -(-(tier.last - first) * (tier.row_bits or 8 * tier.row_bytes) // 8)
        first, place = tier.last, place + 1
    return mean_bytes(total, first)


def mean_bytes(total: int, rows: int) -> int:
    """Of one of some rows that take so much together."""
    return -(-total // max(rows, 1))


_KINDS = {number: name for name, number in native.KINDS.items()}


def _dots(op: Op, rows: int) -> Counts:
    """Products of pairs, a row at a time."""
    form = native.FORMATS[op.fields["format"]]
    n, words = op.fields["times"], -(-op.fields["inputs"] // WORDS[form])
    tiles = op.fields["used"]
    found = Counts({"dots": rows, "turned numbers": rows * op.fields["outputs"] * words})
    used = int(tiles.sum())
    found[f"{form} products"] += rows * used * words * min(n, TILES[0])
    found[f"{form} loads"] += rows * used * words
    found[f"{form} steps"] += rows * used * words
    found["tiles"] += rows * used
    found["runs"] += rows * op.fields["runs"]
    if form != "float32" and not op.fields["brain_in"]:
        found[f"{form} inputs"] += rows * (n + op.fields["outputs"]) * op.fields["inputs"]
    return found


def _brought(rows: int, pieces: int, width: int) -> Counts:
    """Of bringing pieces beside each other."""
    if pieces < 2:
        return Counts()
    return Counts({"pieces": rows * pieces, "brought numbers": rows * width})


def _blocks(rows: int) -> Iterator[int]:
    for first in range(0, rows, BLOCK):
        yield min(BLOCK, rows - first)


def _groups(rows: int) -> int:
    """Tiles that so many rows go in."""
    found = 0
    for tile in TILES:
        found, rows = found + rows // tile, rows % tile
    return found
