"""Dense inputs, weights as they are, and functions of single numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from embedcomp.engine.lowering.state import ITEM, USER, Lowering, overlaps
from embedcomp.engine.lowering.tables import pieces
from embedcomp.engine.ops import Binary, Input, Piece, Sum, Unary
from embedcomp.graph.graph import Node


def input(low: Lowering, node: Node) -> None:
    """The user's columns apart from the candidates'."""
    columns = low.user_columns.get(node.which, ())
    stages = np.array([node.column + i in columns for i in range(node.width)], np.int8)
    edges = [0, *(np.flatnonzero(np.diff(stages)) + 1).tolist(), node.width]
    for first, last in pairwise(edges):
        stage = USER if stages[first] else ITEM
        op = Input(
            stage=stage,
            out=low.buffer(last - first, stage),
            which=node.which,
            column=node.column + first,
            width=last - first,
        )
        low.ops.append(op)
        low.place(node.at + first, last - first, op.out)


def weight(low: Lowering, node: Node) -> None:
    is_score = node.at <= low.graph.out < node.at + node.width
    if is_score or any(overlaps(n, node) for n in low.graph.nodes):  # else it's read by name
        numbers = np.ascontiguousarray(low.tensors.weight(node.name), np.float32).reshape(-1)
        low.place(node.at, node.width, low.buffer(node.width, USER, numbers, node.name))


def unary(low: Lowering, node: Node) -> None:
    op = function(low, pieces(low, node.x), node.name, low_end=node.low, high_end=node.high)
    low.place(node.at, node.width, op.out)


def function(
    low: Lowering,
    x: list[Piece],
    name: str,
    *,
    stage: int | None = None,
    low_end: float = 0,
    high_end: float = 0,
) -> Unary:
    """A function of each number of some pieces."""
    width = sum(piece[2] for piece in x)
    stage = low.stage(x) if stage is None else stage
    op = Unary(
        stage=stage,
        out=low.buffer(width, stage),
        x=x,
        scratch=width,
        name=name,
        width=width,
        low=low_end,
        high=high_end,
    )
    low.ops.append(op)
    return op


def binary(low: Lowering, node: Node) -> None:
    x, y = pieces(low, node.x), pieces(low, node.y)
    stage = low.stage([*x, *y])
    op = Binary(
        stage=stage,
        out=low.buffer(node.width, stage),
        x=x,
        y=y,
        scratch=2 * node.width,
        name=node.name,
        width=node.width,
    )
    low.ops.append(op)
    low.place(node.at, node.width, op.out)


def sum_(low: Lowering, node: Node) -> None:
    x = pieces(low, node.x)
    stage = low.stage(x)
    op = Sum(
        stage=stage,
        out=low.buffer(node.width, stage),
        x=x,
        scratch=node.times * node.width,
        terms=node.times,
        width=node.width,
    )
    low.ops.append(op)
    low.place(node.at, node.width, op.out)
