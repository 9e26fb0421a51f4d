"""Lookups, whose codes are decoded once, where something else than a linear layer reads them."""

from __future__ import annotations

from collections.abc import Iterable

from embedcomp.engine.lowering.product import product
from embedcomp.engine.lowering.state import ITEM, USER, Lowering
from embedcomp.engine.ops import Input, LookUp, Op, Piece
from embedcomp.graph.graph import Node, Run


def look_up(low: Lowering, node: Node) -> None:
    feature = low.graph.features[node.which]
    if feature.table not in low.tables:
        low.tables[feature.table] = low.tensors.table(feature.table)
    table = low.tables[feature.table]
    mapping = table.decoder if node.form == "rows" else table.codes
    if node.which not in low.raw:
        counted = table.decoder is not None or table.codes is not None
        stage = USER if feature.name in low.user else ITEM
        width, out = table.width + counted, low.buffer(table.width + counted, stage)
        op: Op
        if node.which in low.outside:
            which = low.outside[node.which]
            op = Input(stage=stage, out=out, which=which, column=0, width=width)
        else:
            op = LookUp(
                stage=stage,
                out=out,
                feature=node.which,
                width=table.width,
                table=table.stored,
                scratch=2 * table.width if table.reads.mixed else 0,
                row=table.reads,
                ids=feature.count,
                counted=counted,
                mean=low.tensors.tables[feature.table].pooling == "mean",
            )
        low.ops.append(op)
        low.raw[node.which] = op.out
    if mapping is None:
        low.place(node.at, node.width, low.raw[node.which])
    else:
        low.waiting[node.at], low.decoders[node.at] = node, mapping


def waiting(low: Lowering, column: int) -> Node | None:
    """The table that this column is of, if it is not decoded yet."""
    for at, node in low.waiting.items():
        if at <= column < at + node.width:
            return node
    return None


def decode(low: Lowering, node: Node) -> None:
    """Turn a table's codes into rows."""
    del low.waiting[node.at]
    done = low.decoded.get((node.which, node.form))
    if done is not None:  # the same rows are given twice
        low.place(node.at, node.width, done)
        return
    raw = low.raw[node.which]
    decoder, width = low.decoders[node.at], low.buffers[raw].width - 1
    counted = (raw, width, 1)
    out = product(
        low,
        [(raw, 0, width)],
        decoder[:-1].T,
        decoder[-1],
        counted=counted,
        name=f"{low.graph.features[node.which].table}.decode",
    )
    low.decoded[node.which, node.form] = out
    low.place(node.at, node.width, out)


def pieces(low: Lowering, runs: Iterable[Run]) -> list[Piece]:
    """Where columns are; tables that wait to be decoded are."""
    found: list[Piece] = []
    for first, number in runs:
        at, end = first, first + number
        while at < end:
            node = waiting(low, at)
            if node is not None:
                decode(low, node)
            source = low.source(at)
            taken = min(end, source.at + source.count) - at
            start = source.first + at - source.at
            if found and found[-1][0] == source.buffer and sum(found[-1][1:]) == start:
                found[-1] = (source.buffer, found[-1][1], found[-1][2] + taken)
            else:
                found.append((source.buffer, start, taken))
            at += taken
    return found
