"""Finds out what a machine takes for a unit of each kind of work, by timing the real engine.

Small programs of every kind of operation are timed on one thread in turns (clock.py), as plans are
that were carried out; the coefficients are the non-negative least squares of their relative errors
(Lawson and Hanson).
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from embedcomp.engine import cost, ops
from embedcomp.engine.arrays import as_array
from embedcomp.engine.cost import CostModel
from embedcomp.engine.engine import (
    Engine,
    Ids,
    Inputs,
)
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.program import Program
from embedcomp.engine.tensors import StoredMatrix, Table, Tensors
from embedcomp.graph.graph import Feature, Graph, Node
from embedcomp.kernels import clock, native
from embedcomp.kernels.native import address
from embedcomp.storage import kinds
from embedcomp.storage.index import Index, Map, Probed, Ranked, probes_of
from embedcomp.storage.kind import Kind
from embedcomp.storage.probes import Combine, Hash, Probes
from embedcomp.storage.rows import StoredRows
from embedcomp.support.files import cache_folder, sha256

BATCHES = (1, 16, 64, 150)  # rows of a call
TYPICAL = 64  # rows of calls whose time a row hardly depends on their number
ROUNDS = 9  # turns of each program
DIFFERENT = 4  # inputs of a program, scored in a turn
FEATURES = 24  # of a program of lookups
TABLE_ROWS = 256  # of its tables, which stay near the core
FAR_BYTES = (1 << 22, 1 << 23, 1 << 27)  # of tables that do not
LAYERS = (  # widths of layers one after another
    *((16, 16), (64, 64, 64), (200, 32, 200), (300, 8, 300, 8), (100, 130, 100), (40, 300, 1)),
    *((512, 256, 128, 64, 1), (626, 626, 626), (17, 500, 17), (250, 4, 250, 4), (128, 1000, 48)),
)
PIECES = (1, 8, 40)  # that operands are brought together from
DOTS = ((8, 16), (27, 64), (40, 16))  # vectors and their width
WIDTHS = (1, 4, 16, 40)  # of the tables' rows
SINGLE = ("relu", "square", *sorted(cost.SLOW - {"power"}))  # functions


def of_this_machine() -> CostModel:
    """The cost model of this machine, kept in the user's cache folder once it was calibrated.

    Raises:
        NotBuilt: the engine is missing.
    """
    file = cache_folder() / f"cost-{_key()}.json"
    if file.exists():
        return CostModel.load(file)
    model = calibrated()
    model.save(file)
    return model


def calibrated() -> CostModel:
    """Measured now, on one thread.

    Raises:
        NotBuilt: the engine is missing.
    """
    native.needed()
    return modelled(timed())


def modelled(found: Sequence[Timed]) -> CostModel:
    """The cost model of this machine by what programs took on it."""
    return CostModel(microseconds=fit(found), machine=cpu())


def cpu() -> str:
    """What /proc/cpuinfo calls the CPU, or the nearest to it.

    Several generations may have one name, so the numbers of the CPU's design follow it.
    """
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = ""
    pairs = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    named = fields.get("model name", platform.processor() or platform.machine())
    numbers = [fields[name] for name in ("cpu family", "model", "stepping") if name in fields]
    return f"{named} ({'.'.join(numbers)})" if numbers else named


def _key() -> str:
    """Name of a calibration: its CPU, and how the engine was built and its work is counted."""
    file = native.file()
    assert file is not None
    what = cpu(), sha256(file), str(cost.FORMAT)
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Timed:
    """A program's work and what a call took."""

    counts: cost.Counts
    microseconds: float


class _Case:
    """A program and its inputs of `rows` rows."""

    def __init__(self, graph: Graph, tensors: Tensors, rows: int, precision: str = "float32"):
        self.program: Program = lower(graph, tensors, precision=precision)
        engine = Engine(graph, self.program)
        inputs = [_inputs(graph, tensors, rows, seed) for seed in range(DIFFERENT)]
        self.counts = ops.counts(self.program.ops, rows)
        self.calls = [partial(engine.score, read, logits=True) for read in inputs]


def timed() -> list[Timed]:
    """Time all programs; takes a few seconds."""
    cases = list(_cases())
    taken = clock.in_turns([case.calls for case in cases], 0, ROUNDS)
    return [Timed(case.counts, clock.low(its)) for case, its in zip(cases, taken.T, strict=True)]


def fit(found: Sequence[Timed]) -> dict[str, float]:
    """Microseconds of a unit of each kind of work."""
    kinds = sorted({kind for one in found for kind in one.counts})
    work = np.array([[one.counts[kind] for kind in kinds] for one in found], np.float64)
    taken = np.array([one.microseconds for one in found])
    relative = work / taken[:, None]
    scales = relative.max(0)
    coefficients, _ = nnls(relative / scales, np.ones(len(found)))
    return dict(zip(kinds, (coefficients / scales).tolist(), strict=True))


def _cases() -> Iterator[_Case]:
    for rows in BATCHES:
        for widths in LAYERS:
            for form in native.FORMATS:
                yield _Case(*_layers(widths), rows, form)
        for size in FAR_BYTES:
            yield _Case(*_large_table(size), rows)
        for pieces in PIECES:
            yield _Case(*_pairs(pieces), rows)
        for n, width in DOTS:
            for form in native.FORMATS[:2]:
                yield _Case(*_dots(n, width), rows, form)
    yield from (_Case(*_unary(name), TYPICAL) for name in SINGLE)
    yield from _cases_of_tables()


def _cases_of_tables() -> Iterator[_Case]:
    for index in _indexes():
        yield _Case(*_tables(kinds.named("float32"), WIDTHS[2], index), TYPICAL)
    for width in WIDTHS[1:]:
        for combine in ("concat", "multiply"):
            yield _Case(*_tables(kinds.named("float32"), width, _two_hashes(combine)), TYPICAL)
    for width in WIDTHS:
        for kind in kinds.examples(TABLE_ROWS, width):
            if width == WIDTHS[2]:
                yield _Case(*_tables(kind, width), 1)
            yield _Case(*_tables(kind, width), TYPICAL)


def _layers(widths: Sequence[int]) -> tuple[Graph, Tensors]:
    random = np.random.default_rng(0)
    nodes, at = [Node(op="input", at=0, width=widths[0])], 0
    held: dict[str, np.ndarray] = {}
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        name = f"w{place}"
        held[name] = random.standard_normal((outputs, inputs), np.float32) / inputs**0.5
        nodes.append(
            Node(
                op="linear",
                at=at + inputs,
                width=outputs,
                x=((at, inputs),),
                name=name,
                inputs=inputs,
                outputs=outputs,
            )
        )
        at += inputs
    return _summed(nodes), Tensors(held, {}, {})


def _indexes() -> Iterator[Index]:
    ids = torch.arange(TABLE_ROWS)
    mapped = Map(TABLE_ROWS, TABLE_ROWS)
    mapped.fill(ids)
    ranked = Ranked(TABLE_ROWS, TABLE_ROWS, 4)
    ranked.fill(ids % 4)
    return iter((mapped, ranked))


def _two_hashes(combine: Combine) -> Probed:
    both = tuple(Hash(rows=TABLE_ROWS, salt=salt) for salt in range(2))
    return Probed(TABLE_ROWS, Probes(probes=both, combine=combine))


def _tables(kind: Kind, width: int, index: Index | None = None) -> tuple[Graph, Tensors]:
    """Tables of a kind of stored rows of this width."""
    torch.manual_seed(0)
    values = torch.randn(TABLE_ROWS, width)
    rows = StoredRows(TABLE_ROWS, width, kind)
    rows.fill(values)
    matrix = StoredMatrix(kind=kind, rows=TABLE_ROWS, width=width)
    held: dict[str, np.ndarray] = {}
    stored, tables, nodes, features = {}, {}, [], []
    dim = width if index is None else index.width(width)
    for place in range(FEATURES):
        name = f"t{place}"
        for part, tensor in rows.state_dict().items():
            held[f"{name}.stored.{part}"] = as_array(tensor)
        if index is not None:
            for part, tensor in index.state_dict().items():
                held[f"{name}.index.{part}"] = as_array(tensor)
        stored[f"{name}.stored"] = matrix
        tables[name] = Table(
            rows=TABLE_ROWS, dim=dim, pooling="mean", stored=True, probes=probes_of(index)
        )
        features.append(Feature(table=name, leaf=0, key=name))
        nodes.append(Node(op="look_up", at=place * dim, width=dim, which=place, form="rows"))
    return _summed(nodes, features), Tensors(held, stored, tables)


def _large_table(size: int) -> tuple[Graph, Tensors]:
    width = 16
    weight = np.ones((size // (4 * width), width), np.float32)
    tables = {"t": Table(rows=len(weight), dim=width, pooling="sum")}
    keys = [f"f{place}" for place in range(FEATURES)]
    features = [Feature(table="t", leaf=0, key=key) for key in keys]
    nodes = [
        Node(op="look_up", at=place * width, width=width, which=place, form="rows")
        for place in range(FEATURES)
    ]
    return _summed(nodes, features), Tensors({"t.weight": weight}, {}, tables)


def _unary(name: str) -> tuple[Graph, Tensors]:
    width = 100
    nodes = [Node(op="input", at=0, width=width)]
    nodes += [
        Node(op="unary", name="sigmoid", at=width, width=width, x=((0, width),)),
        Node(op="unary", name=name, at=2 * width, width=width, x=((width, width),)),
        Node(op="unary", name="sigmoid", at=3 * width, width=width, x=((2 * width, width),)),
        Node(op="unary", name=name, at=4 * width, width=width, x=((3 * width, width),)),
    ]
    return _summed(nodes), Tensors({}, {}, {})


def _pairs(pieces: int) -> tuple[Graph, Tensors]:
    """Products and sums of columns that lie in so many pieces."""
    each = 480 // pieces
    width = pieces * each
    runs = tuple((place * 2 * each, each) for place in range(pieces))
    nodes = [Node(op="input", at=0, width=2 * width)]
    at = 2 * width
    for name in ("multiply", "add", "power", "add") if pieces == 1 else ("multiply", "add"):
        nodes.append(Node(op="binary", name=name, at=at, width=width, x=runs, y=runs))
        at += width
    return _summed(nodes), Tensors({}, {}, {})


def _dots(n: int, width: int) -> tuple[Graph, Tensors]:
    size = n * width
    dots = Node(op="dots", at=size, width=n * n, x=((0, size),), times=n, inputs=width, outputs=n)
    above = tuple((size + i * n + i + 1, n - i - 1) for i in range(n - 1))
    total = Node(op="sum", at=size + n * n, width=1, times=n * (n - 1) // 2, x=above)
    nodes = (Node(op="input", at=0, width=size), dots, total)
    return Graph(features=(), nodes=nodes, out=total.at), Tensors({}, {}, {})


def _summed(nodes: Sequence[Node], features: Sequence[Feature] = ()) -> Graph:
    """These nodes, and the sum of the last one's columns, or of all lookups'."""
    read = nodes if features else nodes[-1:]
    runs = ((read[0].at, sum(node.width for node in read)),)
    end = nodes[-1].at + nodes[-1].width
    total = Node(op="sum", at=end, width=1, times=runs[0][1], x=runs)
    return Graph(features=tuple(features), nodes=(*nodes, total), out=end)


def _inputs(graph: Graph, tensors: Tensors, rows: int, seed: int) -> Inputs:
    random = np.random.default_rng(seed)
    if graph.features:
        ids = np.concatenate(
            [random.integers(0, tensors.tables[f.table].rows, rows) for f in graph.features]
        )
        lengths = np.ones(len(ids), np.int64)
        keys = tuple(str(feature.key) for feature in graph.features)
        jagged = Ids(
            address(ids), len(ids), lengths=address(lengths), keys=keys, held=(ids, lengths)
        )
        return Inputs(rows, {0: jagged}, held=jagged)
    x = random.standard_normal((rows, graph.nodes[0].width), np.float32)
    return Inputs(rows, {}, [(address(x), x.shape[1])], x)
