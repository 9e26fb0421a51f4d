"""From a Graph to the engine's program: buffers, weights packed as the engine reads them, stages.

What is decided here: decoders are multiplied into the linear layers that read them, activations
into the layer before; a layer that reads the user's columns and the candidates' becomes two, of
which the first is computed once for all candidates. Both ways of scoring run the same operations in
the same order, so their scores are the same to the last bit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from embedcomp.engine.pack import LANES, pack
from embedcomp.engine.program import (
    ITEM,
    NOTHING,
    USER,
    Buffer,
    Op,
    Piece,
    Program,
    Work,
)
from embedcomp.engine.tensors import Rows, Tensors
from embedcomp.graph.graph import Graph, Node, Run
from embedcomp.kernels import native

FEWEST_BYTES = 64  # inputs and outputs of a layer that multiplies bytes: fewer do not pay
TILE = 6  # rows of a tile, as in kernels.inc


@dataclass(frozen=True)
class _Source:
    """Columns of the graph and where they are: `count` columns from `at` on, in one buffer."""

    at: int
    count: int
    buffer: int
    first: int  # column of the buffer


@dataclass(frozen=True)
class _Vectors:
    """Vectors that lie beside each other."""

    pieces: list[Piece]
    brain: bool  # they are pairs of bfloat16


def lower(
    graph: Graph,
    tensors: Tensors,
    user: Collection[str] = (),
    user_columns: Mapping[int, Collection[int]] | None = None,
    *,
    precision: str = "float32",
    as_stored: bool = True,
) -> Program:
    """The program of a graph.

    Args:
        user: names of the features that are the same for all candidates of a request.
        user_columns: the same of dense inputs: by input, columns.
        precision: of products: "float32"; "bfloat16", summed in float32; or "int8", in which large
            linear layers multiply bytes (a step a weight's output, and a step and a zero a
            row), and the rest is in bfloat16.
        as_stored: layers that are stored as bfloat16 or symmetric_int8 multiply in that precision
            where it is lower than the given one.
    """
    lowering = _Lowering(graph, tensors, set(user), user_columns or {}, precision, as_stored)
    return lowering.program()


class _Lowering:
    def __init__(
        self,
        graph: Graph,
        tensors: Tensors,
        user: set[str],
        user_columns: Mapping[int, Collection[int]],
        precision: str,
        as_stored: bool,
    ):
        self.graph, self.tensors, self.as_stored = graph, tensors, as_stored
        self.brain, self.bytes = precision != "float32", precision == "int8"
        self.user, self.user_columns = user, user_columns
        self.buffers: list[Buffer] = []
        self.ops: list[Op] = []
        self.sources: list[_Source] = []  # by `at`
        self.tables: dict[str, Rows] = {}
        self.raw: dict[int, int] = {}  # buffer of each feature's summed codes
        self.decoded: dict[int, np.ndarray] = {}  # by `at`, for nodes that wait to be decoded
        self.looked_up: dict[int, Node] = {}  # the same nodes
        self.outputs: dict[tuple[int, str], int] = {}  # buffers of decoded rows, by feature, form
        self.parents: dict[int, tuple[int, int]] = {}  # buffers within others, and where
        self.work: dict[int, Counter[str]] = {ITEM: Counter(), USER: Counter()}
        self.weight_bytes = 0
        self.rectified: set[int] = set()  # first columns of layers that end with a ReLU

    def program(self) -> Program:
        fused = self._activations()
        self.rectified = {layer.at for layer in fused.values()}
        for node in self.graph.nodes:
            if node.at in fused:  # an activation that its layer has already
                self._place(node.at, node.width, self._source(fused[node.at].at).buffer)
            else:
                getattr(self, f"_{node.op}")(node)
        ((out, at, _),) = self._pieces(((self.graph.out, 1),))
        if at or self.buffers[out].width != 1:
            out = self._unary_of([(out, at, 1)], "copy")
        if self.buffers[out].stage == USER:  # no candidate matters
            out = self._unary_of([(out, 0, 1)], "copy", stage=ITEM)
        for op in self.ops:
            self._settle(op)
        # lookups first, so that the next block's rows can be brought near meanwhile
        self.ops.sort(key=lambda op: op.kind != native.LOOK_UP)
        work = Work(dict(self.work[ITEM]), dict(self.work[USER]), self.weight_bytes)
        return Program(self.buffers, self.ops, out, self.tables, work)

    def _together(self, pieces: list[Piece]) -> list[Piece]:
        """Whole buffers as neighbours within a new one, so that nothing has to be copied.

        Left as they are where one is of another stage, or lies within another buffer already.
        """
        stages = {self.buffers[buffer].stage for buffer, _, _ in pieces}
        names = [buffer for buffer, _, _ in pieces]
        apart = {
            op.out for op in self.ops if op.fields.get("times", 1) > 1 and op.kind == native.LINEAR
        }
        for buffer, at, width in pieces:
            held = self.buffers[buffer]
            if at or width != held.width or held.constant is not None or buffer in apart:
                return pieces
        if len(pieces) < 2 or len(stages) > 1 or len(set(names)) < len(names):
            return pieces
        if self.parents.keys() & set(names):
            return pieces
        whole = self._buffer(sum(piece[2] for piece in pieces), stages.pop())
        at = 0
        for buffer, _, width in pieces:
            self.parents[buffer] = whole, at
            at += width
        return [(whole, 0, at)]

    def _settle(self, op: Op) -> None:
        """Name the buffers that buffers lie in."""
        op.x, op.y = ([self._settled(piece) for piece in of] for of in (op.x, op.y))
        op.x, op.y = _joined(op.x), _joined(op.y)
        op.out, op.out_at, _ = self._settled((op.out, 0, 0))
        if "counts" in op.fields:
            op.fields["counts"] = self._settled(op.fields["counts"])

    def _settled(self, piece: Piece) -> Piece:
        buffer, at, width = piece
        while buffer in self.parents:
            buffer, start = self.parents[buffer]
            at += start
        return buffer, at, width

    def _activations(self) -> dict[int, Node]:
        """Layers with a ReLU that nothing but it reads, by the first column of the ReLU."""
        layers = {node.at: node for node in self.graph.nodes if node.op == "linear"}
        found = {}
        for node in self.graph.nodes:
            if node.op == "unary" and node.name == "relu" and len(node.x) == 1:
                layer = layers.get(node.x[0][0])
                if layer is not None and node.x[0] == (layer.at, layer.width):
                    readers = [n for n in self.graph.nodes if _overlaps(n, layer)]
                    if (
                        readers == [node]
                        and not layer.at <= self.graph.out < layer.at + layer.width
                    ):
                        found[node.at] = layer
        return found

    def _buffer(self, width: int, stage: int, constant: np.ndarray | None = None) -> int:
        self.buffers.append(Buffer(width, stage, constant))
        return len(self.buffers) - 1

    def _place(self, at: int, count: int, buffer: int, first: int = 0) -> None:
        self.sources.append(_Source(at, count, buffer, first))
        self.sources.sort(key=lambda source: source.at)

    def _pieces(self, runs: Iterable[Run]) -> list[Piece]:
        """Where columns are; tables that wait to be decoded are."""
        pieces: list[Piece] = []
        for first, number in runs:
            at, end = first, first + number
            while at < end:
                waiting = self._waiting(at)
                if waiting is not None:
                    self._decode(waiting)
                source = self._source(at)
                taken = min(end, source.at + source.count) - at
                start = source.first + at - source.at
                if pieces and pieces[-1][0] == source.buffer and sum(pieces[-1][1:]) == start:
                    pieces[-1] = (source.buffer, pieces[-1][1], pieces[-1][2] + taken)
                else:
                    pieces.append((source.buffer, start, taken))
                at += taken
        return pieces

    def _source(self, column: int) -> _Source:
        place = bisect_right(self.sources, column, key=lambda source: source.at) - 1
        source = self.sources[place]
        assert source.at <= column < source.at + source.count, (column, source)
        return source

    def _waiting(self, column: int) -> Node | None:
        """The table that this column is of, if it is not decoded yet."""
        for at, node in self.looked_up.items():
            if at <= column < at + node.width:
                return node
        return None

    def _stage(self, pieces: Iterable[Piece]) -> int:
        """Of what reads them: the user's where everything is; constants are every stage's."""
        return min((self.buffers[buffer].stage for buffer, _, _ in pieces), default=USER)

    # One method an operation of the graph.

    def _input(self, node: Node) -> None:
        columns = self.user_columns.get(node.which, ())
        stages = np.array([node.column + i in columns for i in range(node.width)], np.int8)
        edges = [0, *(np.flatnonzero(np.diff(stages)) + 1).tolist(), node.width]
        for first, last in pairwise(edges):
            stage = USER if stages[first] else ITEM
            out = self._buffer(last - first, stage)
            columns_of = {"inputs": node.column + first, "outputs": last - first}
            fields = {"which": 2 * node.which + stage, **columns_of}
            self.ops.append(Op(native.INPUT, stage, out, fields=fields))
            self._place(node.at + first, last - first, out)

    def _look_up(self, node: Node) -> None:
        feature = self.graph.features[node.which]
        if feature.table not in self.tables:
            self.tables[feature.table] = self.tensors.table(feature.table)
        table = self.tables[feature.table]
        mapping = table.decoder if node.form == "rows" else table.codes
        if node.which not in self.raw:
            counted = table.decoder is not None or table.codes is not None
            stage = USER if feature.name in self.user else ITEM
            out = self._buffer(table.width + counted, stage)
            fields = {
                "which": node.which,
                "times": feature.count,
                "table": table.stored,
                "counted": counted,
                "mean": self.tensors.tables[feature.table].pooling == "mean",
            }
            self.ops.append(Op(native.LOOK_UP, stage, out, fields=fields))
            self.raw[node.which] = out
        if mapping is None:
            self._place(node.at, node.width, self.raw[node.which])
        else:
            self.looked_up[node.at], self.decoded[node.at] = node, mapping

    def _decode(self, node: Node) -> None:
        """Turn codes into rows, once, where something else than a linear layer reads them."""
        del self.looked_up[node.at]
        done = self.outputs.get((node.which, node.form))
        if done is not None:  # the same rows are given twice
            self._place(node.at, node.width, done)
            return
        raw = self.raw[node.which]
        decoder, width = self.decoded[node.at], self.buffers[raw].width - 1
        counts = (raw, width, 1)
        out = self._product([(raw, 0, width)], decoder[:-1].T, decoder[-1], counts=counts)
        self.outputs[node.which, node.form] = out
        self._place(node.at, node.width, out)

    def _weight(self, node: Node) -> None:
        is_score = node.at <= self.graph.out < node.at + node.width
        if is_score or any(_overlaps(n, node) for n in self.graph.nodes):  # else it's read by name
            constant = np.ascontiguousarray(self.tensors.weight(node.name), np.float32).reshape(-1)
            self._place(node.at, node.width, self._buffer(node.width, USER, constant))

    def _linear(self, node: Node) -> None:
        relu, stored_for = node.at in self.rectified, self.tensors.multiplied_in(node.name)
        weight = self._matrix(node).astype(np.float64)
        bias = self.tensors.weight(node.bias).astype(np.float64) if node.bias else None
        pieces, parts = self._read(node, weight)
        if node.times == 1:
            order = sorted(range(len(pieces)), key=lambda i: pieces[i])  # so that neighbours meet
            pieces, parts = [pieces[i] for i in order], [parts[i] for i in order]
        stages = [self.buffers[buffer].stage for buffer, _, _ in pieces]
        if node.times > 1 or len(set(stages)) == 1:
            whole = np.concatenate(parts, 1)
            out = self._product(
                pieces,
                whole,
                bias,
                times=node.times,
                relu=relu,
                stored_for=stored_for,
                name=node.name,
            )
        else:
            init = -1
            for stage, its_bias in ((USER, bias), (ITEM, None)):
                own = [i for i, of in enumerate(stages) if of == stage]
                out = init = self._product(
                    [pieces[i] for i in own],
                    np.concatenate([parts[i] for i in own], 1),
                    its_bias,
                    init=init,
                    relu=relu and stage == ITEM,
                    stored_for=stored_for,
                    name=node.name,
                )
        self._place(node.at, node.width, out)

    def _matrix(self, node: Node) -> np.ndarray:
        """A linear layer's weight [outputs, inputs]."""
        numbers = self.tensors.weight(node.name).reshape(-1)
        numbers = numbers[node.column : node.column + node.outputs * node.inputs]
        if node.form == "transposed":
            return numbers.reshape(node.inputs, node.outputs).T
        return numbers.reshape(node.outputs, node.inputs)

    def _read(self, node: Node, weight: np.ndarray) -> tuple[list[Piece], list[np.ndarray]]:
        """What a linear layer reads, and the columns of its weight for each piece.

        Where codes are no wider than the rows that they stand for, their decoder is multiplied into
        the weight.
        """
        if node.times > 1:
            return self._pieces(node.x), [weight]  # which is the same for all its vectors
        pieces: list[Piece] = []
        parts: list[np.ndarray] = []
        column = 0
        for first, number in node.x:
            at, end = first, first + number
            while at < end:
                waiting = self._waiting(at)
                if waiting is not None and (
                    waiting.at != at
                    or waiting.at + waiting.width > end
                    or len(self.decoded[at]) > waiting.width
                ):
                    self._decode(waiting)
                    waiting = None
                if waiting is not None:
                    raw, taken = self.raw[waiting.which], waiting.width
                    pieces.append((raw, 0, self.buffers[raw].width))
                    parts.append(weight[:, column : column + taken] @ self.decoded[at].T)
                else:
                    source = self._source(at)
                    taken = min(end, source.at + source.count) - at
                    pieces.append((source.buffer, source.first + at - source.at, taken))
                    parts.append(weight[:, column : column + taken])
                at += taken
                column += taken
        return pieces, parts

    def _product(
        self,
        pieces: list[Piece],
        weight: np.ndarray,
        bias: np.ndarray | None,
        *,
        times: int = 1,
        init: int = -1,
        counts: Piece = NOTHING,
        relu: bool = False,
        stored_for: str | None = None,
        name: str = "",
    ) -> int:
        """A linear operation; gives its buffer.

        Args:
            counts: how often a row has the bias; none: once.
            stored_for: the precision of products that the weight is stored for.
            name: of the graph's weight, if it is one.
        """
        outputs, inputs = weight.shape
        pieces = _joined(pieces)
        stage = self._stage(pieces)
        out = self._buffer(times * outputs, stage)
        form = native.FORMATS[self.brain]
        if self.bytes and min(inputs, outputs) >= FEWEST_BYTES:
            form = "int8"
        if self.as_stored and stored_for is not None:
            form = max(form, stored_for, key=native.FORMATS.index)
        packed = pack(np.ascontiguousarray(weight, np.float32), form)
        fields: dict[str, Any] = {
            "weight": packed.words,
            "times": times,
            "inputs": inputs,
            "outputs": outputs,
            "format": native.FORMATS.index(form),
            "relu": relu,
            "init": init,
            "counts": counts,
        }
        if packed.scales is not None and packed.sums is not None:
            fields |= {"scales": packed.scales, "sums": packed.sums}
        if bias is not None:
            fields["bias"] = np.ascontiguousarray(bias, np.float32)
        whole = times * inputs
        scratch = whole * ((len(pieces) > 1) + (times > 1))
        if form != "float32":  # bytes are no wider, with a step and a zero a vector
            scratch += times * ((inputs + 1) // 2 + 2)
        op = Op(native.LINEAR, stage, out, x=pieces, fields=fields, scratch=scratch + 1, name=name)
        self.ops.append(op)
        self.work[stage][form] += times * inputs * outputs
        self.weight_bytes += packed.words.nbytes
        return out

    def _dots(self, node: Node) -> None:
        n, m = node.times, node.outputs
        wanted = np.zeros((n, m), bool)
        for other in self.graph.nodes:
            for first, number in (*other.x, *other.y):
                low, high = max(first, node.at), min(first + number, node.at + n * m)
                wanted.reshape(-1)[low - node.at : max(high, low) - node.at] = True
        xs, ys = self._vectors(node, node.x), self._vectors(node, node.y)
        brain = self.brain and all(
            at % 2 == 0 == width % 2 for vector in (*xs, *ys) for _, at, width in vector
        )
        if node.y:
            x, y = self._beside(node, xs, brain), self._beside(node, ys, brain)
            self._placed(node, wanted, self._products(node, x, y, wanted))
            return
        stages = np.array([self._stage(vector) for vector in xs])
        places = -np.ones((n, m, 2), np.int64)  # buffer and column of each product
        groups = {stage: np.flatnonzero(stages == stage) for stage in (USER, ITEM)}
        sides = {
            stage: self._beside(node, [xs[i] for i in of], brain)
            for stage, of in groups.items()
            if len(of)
        }
        for stage, side in sides.items():  # the user's with each other are computed once
            own = np.ix_(groups[stage], groups[stage])
            places[own] = self._products(node, side, None, wanted[own])
        if len(sides) > 1:
            across = np.ix_(groups[ITEM], groups[USER])
            needed = wanted[across] | wanted.T[across]
            found = self._products(node, sides[ITEM], sides[USER], needed)
            places[across] = found
            places[np.ix_(groups[USER], groups[ITEM])] = found.transpose(1, 0, 2)
        self._placed(node, wanted, places)

    def _vectors(self, node: Node, runs: Iterable[Run]) -> list[list[Piece]]:
        """The pieces of each of the vectors that a node multiplies."""
        columns = np.array([c for first, number in runs for c in range(first, first + number)])
        return [
            self._pieces([(int(part[0]), len(part)) for part in _neighbours(vector)])
            for vector in columns.reshape(-1, node.inputs)
        ]

    def _beside(self, node: Node, vectors: list[list[Piece]], brain: bool) -> _Vectors:
        """Vectors beside each other, as floats or as bfloat16."""
        whole = [piece for vector in vectors for piece in vector]
        if not brain:
            return _Vectors(self._together(_joined(whole)), False)
        stage = self._stage(whole)
        words = self._buffer(sum(width for _, _, width in whole) // 2, stage)
        decoders = {out: key for key, out in self.outputs.items()}
        at = 0
        for piece in whole:
            buffer, first, width = piece
            op = next((o for o in self.ops if o.out == buffer), None)
            readers = self._readers(decoders[buffer]) if buffer in decoders else []
            alone = not first and width == self.buffers[buffer].width
            if alone and op is not None and readers == [node] and buffer not in self.parents:
                op.fields["brain_out"] = True
                self.parents[buffer] = words, at
            else:
                out = self._unary_of([piece], "copy", stage=stage)
                self.ops[-1].fields["brain_out"] = True
                self.parents[out] = words, at
            at += width // 2
        return _Vectors([(words, 0, at)], True)

    def _readers(self, look_up: tuple[int, str]) -> list[Node]:
        """The nodes that read a feature's rows."""
        nodes = [n for n in self.graph.nodes if n.op == "look_up"]
        same = [n for n in nodes if (n.which, n.form) == look_up]
        return [n for n in self.graph.nodes if any(_overlaps(n, of) for of in same)]

    def _products(
        self, node: Node, x: _Vectors, y: _Vectors | None, wanted: np.ndarray
    ) -> np.ndarray:
        """Dot products of x with y (or with itself): buffer and column of each, int64 [n, m, 2]."""
        n, m = wanted.shape
        width, other = node.inputs, y if y is not None else x
        runs = _runs(wanted.reshape(-1), m)
        out = self._buffer(int(wanted.sum()), self._stage([*x.pieces, *other.pieces]))
        padded, words = -(-m // LANES) * LANES, (width + 1) // 2 if self.brain else width
        tiles = np.zeros((-(-n // TILE), padded // LANES), np.uint8)
        rows, columns = np.nonzero(wanted)
        tiles[rows // TILE, columns // LANES] = 1
        fields = {
            "times": n,
            "inputs": width,
            "outputs": m,
            "format": int(self.brain),
            "brain_in": x.brain,
            "runs": len(runs),
            "run": np.array([(a // m * padded + a % m, k) for a, k in runs], np.int32),
            "used": tiles,
            "products": (n + TILE) * padded + words * padded + (n + m) * words + 64,
        }
        stage, read = self.buffers[out].stage, [] if y is None else y.pieces
        scratch = (n + m) * width
        self.ops.append(Op(native.DOTS, stage, out, 0, x.pieces, read, fields, scratch))
        self.work[stage][native.FORMATS[self.brain]] += int(wanted.sum()) * width
        places = -np.ones((n, m, 2), np.int64)
        places[wanted] = np.stack([np.full(len(rows), out), np.arange(len(rows))], 1)
        return places

    def _placed(self, node: Node, wanted: np.ndarray, places: np.ndarray) -> None:
        """Say where the products of a node are."""
        for column in np.flatnonzero(wanted.reshape(-1)):
            buffer, at = places.reshape(-1, 2)[column]
            self._place(node.at + int(column), 1, int(buffer), int(at))

    def _unary(self, node: Node) -> None:
        out = self._unary_of(self._pieces(node.x), node.name, low=node.low, high=node.high)
        self._place(node.at, node.width, out)

    def _unary_of(
        self,
        x: list[Piece],
        name: str,
        *,
        stage: int | None = None,
        low: float = 0,
        high: float = 0,
    ) -> int:
        width = sum(piece[2] for piece in x)
        stage = self._stage(x) if stage is None else stage
        out = self._buffer(width, stage)
        fields = {"which": native.UNARIES.index(name), "outputs": width, "low": low, "high": high}
        self.ops.append(Op(native.UNARY, stage, out, x=x, fields=fields, scratch=width))
        return out

    def _binary(self, node: Node) -> None:
        x, y = self._pieces(node.x), self._pieces(node.y)
        stage = self._stage([*x, *y])
        out = self._buffer(node.width, stage)
        fields = {"which": native.BINARIES.index(node.name), "outputs": node.width}
        self.ops.append(Op(native.BINARY, stage, out, 0, x, y, fields, 2 * node.width))
        self._place(node.at, node.width, out)

    def _sum(self, node: Node) -> None:
        x = self._pieces(node.x)
        out = self._buffer(node.width, self._stage(x))
        stage, scratch = self.buffers[out].stage, node.times * node.width
        fields = {"times": node.times, "outputs": node.width}
        self.ops.append(Op(native.SUM, stage, out, x=x, fields=fields, scratch=scratch))
        self._place(node.at, node.width, out)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours within one buffer as one piece."""
    joined: list[Piece] = []
    for buffer, at, width in pieces:
        if joined and joined[-1][0] == buffer and sum(joined[-1][1:]) == at:
            joined[-1] = (buffer, joined[-1][1], joined[-1][2] + width)
        else:
            joined.append((buffer, at, width))
    return joined


def _overlaps(reader: Node, node: Node) -> bool:
    end = node.at + node.width
    return any(first < end and node.at < first + n for first, n in (*reader.x, *reader.y))


def _neighbours(columns: np.ndarray) -> list[np.ndarray]:
    """The columns cut where one does not follow the one before."""
    return np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)


def _runs(wanted: np.ndarray, width: int) -> list[Run]:
    """Runs of what is wanted, none of which goes on into the next row of `width`."""
    places = np.flatnonzero(wanted)
    breaks = np.flatnonzero((np.diff(places) != 1) | (places[1:] % width == 0)) + 1
    return [(int(part[0]), len(part)) for part in np.split(places, breaks) if len(part)]
