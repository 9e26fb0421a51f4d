"""Dot products of vectors with each other; those of the user's vectors are computed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from embedcomp.engine.lowering.numbers import function
from embedcomp.engine.lowering.state import ITEM, USER, Lowering, joined
from embedcomp.engine.lowering.tables import pieces
from embedcomp.engine.ops import Dots, Linear, Op, Piece
from embedcomp.engine.pack import LANES
from embedcomp.graph.graph import Node, Run

TILE = 6  # rows of a tile, as in kernels.inc


@dataclass(frozen=True)
class _Vectors:
    """Vectors that lie beside each other."""

    pieces: list[Piece]
    brain: bool  # they are pairs of bfloat16


def dots(low: Lowering, node: Node) -> None:
    n, m = node.times, node.outputs
    wanted = np.zeros((n, m), bool)
    for other in low.graph.nodes:
        for first, number in (*other.x, *other.y):
            start, end = max(first, node.at), min(first + number, node.at + n * m)
            wanted.reshape(-1)[start - node.at : max(end, start) - node.at] = True
    xs, ys = _vectors(low, node, node.x), _vectors(low, node, node.y)
    brain = low.brain and all(
        at % 2 == 0 == width % 2 for vector in (*xs, *ys) for _, at, width in vector
    )
    if node.y:
        x, y = _beside(low, node, xs, brain), _beside(low, node, ys, brain)
        _placed(low, node, wanted, _products(low, node, x, y, wanted))
        return
    stages = np.array([low.stage(vector) for vector in xs])
    places = -np.ones((n, m, 2), np.int64)  # buffer and column of each product
    groups = {stage: np.flatnonzero(stages == stage) for stage in (USER, ITEM)}
    sides = {
        stage: _beside(low, node, [xs[i] for i in of], brain)
        for stage, of in groups.items()
        if len(of)
    }
    for stage, side in sides.items():
        own = np.ix_(groups[stage], groups[stage])
        places[own] = _products(low, node, side, None, wanted[own])
    if len(sides) > 1:
        across = np.ix_(groups[ITEM], groups[USER])
        needed = wanted[across] | wanted.T[across]
        found = _products(low, node, sides[ITEM], sides[USER], needed)
        places[across] = found
        places[np.ix_(groups[USER], groups[ITEM])] = found.transpose(1, 0, 2)
    _placed(low, node, wanted, places)


def _vectors(low: Lowering, node: Node, runs: Iterable[Run]) -> list[list[Piece]]:
    """The pieces of each of the vectors that a node multiplies."""
    columns = np.array([c for first, number in runs for c in range(first, first + number)])
    return [
        pieces(low, [(int(part[0]), len(part)) for part in _neighbours(vector)])
        for vector in columns.reshape(-1, node.inputs)
    ]


def _beside(low: Lowering, node: Node, vectors: list[list[Piece]], brain: bool) -> _Vectors:
    """Vectors beside each other, as floats or as bfloat16."""
    flat = [piece for vector in vectors for piece in vector]
    if not brain:
        return _Vectors(low.together(joined(flat)), False)
    stage = low.stage(flat)
    words = low.buffer(sum(width for _, _, width in flat) // 2, stage)
    tables = {out: key for key, out in low.decoded.items()}
    at = 0
    for piece in flat:
        buffer, first, width = piece
        op: Op | None = next((o for o in low.ops if o.out == buffer), None)
        readers = _readers(low, tables[buffer]) if buffer in tables else []
        alone = not first and width == low.buffers[buffer].width
        if isinstance(op, Linear) and alone and readers == [node] and buffer not in low.parents:
            op.brain_out = True
            low.parents[buffer] = words, at
        else:
            copy = function(low, [piece], "copy", stage=stage)
            copy.brain_out = True
            low.parents[copy.out] = words, at
        at += width // 2
    return _Vectors([(words, 0, at)], True)


def _readers(low: Lowering, table: tuple[int, str]) -> list[Node]:
    """The nodes that read a feature's rows."""
    look_ups = [n for n in low.graph.nodes if n.op == "look_up" and (n.which, n.form) == table]
    found = [reader for of in look_ups for reader in low.readers(of)]
    return [node for node in low.graph.nodes if node in found]


def _products(
    low: Lowering, node: Node, x: _Vectors, y: _Vectors | None, wanted: np.ndarray
) -> np.ndarray:
    """Dot products of x with y (or with itself): buffer and column of each, int64 [n, m, 2]."""
    n, m = wanted.shape
    width, other = node.inputs, y if y is not None else x
    runs = _runs(wanted.reshape(-1), m)
    padded, words = -(-m // LANES) * LANES, (width + 1) // 2 if low.brain else width
    tiles = np.zeros((-(-n // TILE), padded // LANES), np.uint8)
    rows, columns = np.nonzero(wanted)
    tiles[rows // TILE, columns // LANES] = 1
    stage = low.stage([*x.pieces, *other.pieces])
    op = Dots(
        stage=stage,
        out=low.buffer(int(wanted.sum()), stage),
        x=x.pieces,
        y=[] if y is None else y.pieces,
        scratch=(n + m) * width,
        vectors=n,
        others=m,
        width=width,
        wanted=int(wanted.sum()),
        runs=np.array([(a // m * padded + a % m, k) for a, k in runs], np.int32),
        used=tiles,
        brain=low.brain,
        brain_in=x.brain,
        room=(n + TILE) * padded + words * padded + (n + m) * words + 64,
    )
    low.ops.append(op)
    places = -np.ones((n, m, 2), np.int64)
    places[wanted] = np.stack([np.full(len(rows), op.out), np.arange(len(rows))], 1)
    return places


def _placed(low: Lowering, node: Node, wanted: np.ndarray, places: np.ndarray) -> None:
    """Say where the products of a node are."""
    for column in np.flatnonzero(wanted.reshape(-1)):
        buffer, at = places.reshape(-1, 2)[column]
        low.place(node.at + int(column), 1, int(buffer), int(at))


def _neighbours(columns: np.ndarray) -> list[np.ndarray]:
    """The columns cut where one does not follow the one before."""
    return np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)


def _runs(wanted: np.ndarray, width: int) -> list[Run]:
    """Runs of neighbouring products that are wanted; none goes on into the next row of `width`."""
    places = np.flatnonzero(wanted)
    breaks = np.flatnonzero((np.diff(places) != 1) | (places[1:] % width == 0)) + 1
    return [(int(part[0]), len(part)) for part in np.split(places, breaks) if len(part)]
