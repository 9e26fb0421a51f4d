"""What a program costs: work that is counted, times what a machine takes for a unit of each kind.

Work is counted from an operation's shape as the kernels (kernels.inc) go about it: a product goes
in tiles of rows by panels of columns, a block of rows at a time. So what is planned can be counted
before it exists, by the same functions as a program that is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from embedcomp.engine.pack import BLOCK, LANES, PANEL, WORDS
from embedcomp.errors import BadSettings
from embedcomp.storage.kind import Reads
from embedcomp.support.files import replacing

FORMAT = 3  # of a cost model's file; another one where work is counted in another way
TILES = (6, 3, 1)  # rows of a tile, as in kernels.inc
SQUARE = 16  # rows, words and numbers of what a CPU's matrix unit multiplies at a time
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
    """Work of a linear operation.

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
        for block in _blocks(rows):
            found += _squares(form, block * times, words, vectors)
    return found + brought(rows, pieces, times * inputs)


def look_up(rows: int, reads: Reads, ids: float = 1) -> Counts:
    """Work of a lookup whose bags have `ids` ids on average."""
    found = blocks(rows) + {"bags": rows}
    read = rows * ids * reads.rows
    found[f"{reads.kind} rows"] += read
    found[f"{reads.kind} numbers"] += read * reads.numbers
    found[f"{reads.kind} vectors"] += read * reads.vectors
    if reads.index:
        found[reads.index] += read
    if reads.mixed:
        found["mixed rows"] += read
        found["mixed numbers"] += read * reads.numbers
    lines = read * (1 + (reads.row_bytes - 1) / LINE)
    if reads.stored_bytes > FAR:
        found["far lines"] += lines
    if reads.stored_bytes > DISTANT:
        found["distant lines"] += lines
    return found


def dots(
    rows: int, *, vectors: int, others: int, width: int, tiles: int, runs: int, form: str
) -> Counts:
    """Work of dot products of pairs of vectors, a row at a time.

    Args:
        vectors, others: that are multiplied with each other.
        tiles: of vectors by panels of others that any product is wanted of.
        runs: of neighbours in what is wanted.
    """
    words = -(-width // WORDS[form])
    found = Counts({"dots": rows, "turned numbers": rows * others * words})
    found[f"{form} products"] += rows * tiles * words * min(vectors, TILES[0])
    found[f"{form} loads"] += rows * tiles * words
    found[f"{form} steps"] += rows * tiles * words
    found["tiles"] += rows * tiles
    found["runs"] += rows * runs
    if form != "float32":
        one = _squares(form, vectors, words, -(-others // LANES))
        found += {kind: rows * number for kind, number in one.items()}
    return found


def function(rows: int, name: str, numbers: int) -> Counts:
    """Work of an element-wise function of `numbers` numbers a row, a row at a time."""
    kind = f"{name if name in SLOW else 'quick'} numbers"
    return Counts({"single rows": rows, kind: rows * numbers})


def blocks(rows: int) -> Counts:
    """Work of beginning an operation, once a block of rows."""
    return Counts({"operations": len(list(_blocks(rows)))})


def brought(rows: int, pieces: int, width: int) -> Counts:
    """Work of copying pieces of a vector beside each other."""
    if pieces < 2:
        return Counts()
    return Counts({"pieces": rows * pieces, "brought numbers": rows * width})


def _blocks(rows: int) -> Iterator[int]:
    for first in range(0, rows, BLOCK):
        yield min(BLOCK, rows - first)


def _squares(form: str, rows: int, words: int, vectors: int) -> Counts:
    """Sums of rows by vectors as a matrix unit makes them, and what it multiplies for each.

    They are counted beside tiles of vectors, which other CPUs go by: what a machine does not do
    turns out to take no time there.
    """
    squares = -(-rows // SQUARE) * vectors
    return Counts({f"{form} squares": squares, f"{form} cubes": squares * -(-words // SQUARE)})


def _groups(rows: int) -> int:
    """Number of tiles that hold `rows` rows."""
    found = 0
    for tile in TILES:
        found, rows = found + rows // tile, rows % tile
    return found
