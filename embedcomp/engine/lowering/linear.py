"""Linear layers: decoders of the tables that they read are multiplied into their weights.

A layer that reads the user's columns and the candidates' becomes two, of which the first is
computed once for all candidates.
"""

from __future__ import annotations

import numpy as np

from embedcomp.engine.lowering.product import product
from embedcomp.engine.lowering.state import ITEM, USER, Lowering
from embedcomp.engine.lowering.tables import decode, pieces, waiting
from embedcomp.engine.ops import Piece
from embedcomp.graph.graph import Node


def linear(low: Lowering, node: Node) -> None:
    relu, stored_for = node.at in low.rectified, low.tensors.multiplied_in(node.name)
    weight = _matrix(low, node).astype(np.float64)
    bias = low.tensors.weight(node.bias).astype(np.float64) if node.bias else None
    read, parts = _read(low, node, weight)
    if node.times == 1:
        order = sorted(range(len(read)), key=lambda i: read[i])  # so that neighbours meet
        read, parts = [read[i] for i in order], [parts[i] for i in order]
    stages = [low.buffers[buffer].stage for buffer, _, _ in read]
    if node.times > 1 or len(set(stages)) == 1:
        out = product(
            low,
            read,
            np.concatenate(parts, 1),
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
            out = init = product(
                low,
                [read[i] for i in own],
                np.concatenate([parts[i] for i in own], 1),
                its_bias,
                init=init,
                relu=relu and stage == ITEM,
                stored_for=stored_for,
                name=node.name,
            )
    low.place(node.at, node.width, out)


def _matrix(low: Lowering, node: Node) -> np.ndarray:
    """A linear layer's weight [outputs, inputs]."""
    numbers = low.tensors.weight(node.name).reshape(-1)
    numbers = numbers[node.column : node.column + node.outputs * node.inputs]
    if node.form == "transposed":
        return numbers.reshape(node.inputs, node.outputs).T
    return numbers.reshape(node.outputs, node.inputs)


def _read(low: Lowering, node: Node, weight: np.ndarray) -> tuple[list[Piece], list[np.ndarray]]:
    """What a linear layer reads, and the columns of its weight for each piece.

    Where codes are no wider than the rows that they stand for, their decoder is multiplied into
    the weight.
    """
    if node.times > 1:
        return pieces(low, node.x), [weight]  # which is the same for all its vectors
    found: list[Piece] = []
    parts: list[np.ndarray] = []
    column = 0
    for first, number in node.x:
        at, end = first, first + number
        while at < end:
            table = waiting(low, at)
            if table is not None and (
                table.at != at
                or table.at + table.width > end
                or len(low.decoders[at]) > table.width
            ):
                decode(low, table)
                table = None
            if table is not None:
                raw, taken = low.raw[table.which], table.width
                found.append((raw, 0, low.buffers[raw].width))
                parts.append(weight[:, column : column + taken] @ low.decoders[at].T)
            else:
                source = low.source(at)
                taken = min(end, source.at + source.count) - at
                found.append((source.buffer, source.first + at - source.at, taken))
                parts.append(weight[:, column : column + taken])
            at += taken
            column += taken
    return found, parts
