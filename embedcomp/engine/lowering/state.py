"""What lowering a graph knows so far: buffers, operations, and where the graph's columns are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from embedcomp.engine.ops import Linear, Op, Piece
from embedcomp.engine.program import ITEM, USER, Buffer
from embedcomp.engine.tensors import TableRows, Tensors
from embedcomp.graph.graph import Graph, Node, Run

__all__ = ["ITEM", "USER", "Lowering", "Source", "joined", "overlaps"]


@dataclass(frozen=True)
class Source:
    """Columns of the graph and where they are: `count` columns from `at` on, in one buffer."""

    at: int
    count: int
    buffer: int
    first: int  # column of the buffer


@dataclass
class Lowering:
    """A program that is being made.

    brain, bytes: products are in bfloat16, and those of large linear layers in int8.
    as_stored: layers multiply in the precision that they are stored for where it is lower.
    user, user_columns: features and dense columns that are the same for all candidates.
    sources: by `at`.
    raw: buffer of each feature's summed codes.
    decoders: by `at`, for tables that wait to be decoded; waiting: their nodes.
    decoded: buffers of decoded rows, by feature and form.
    parents: buffers within others, and where.
    rectified: first columns of layers that end with a ReLU.
    outside: features whose pooled rows are given, and the dense input that has those of each.
    """

    graph: Graph
    tensors: Tensors
    user: Collection[str]
    user_columns: Mapping[int, Collection[int]]
    brain: bool
    bytes: bool
    as_stored: bool
    buffers: list[Buffer] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    tables: dict[str, TableRows] = field(default_factory=dict)
    raw: dict[int, int] = field(default_factory=dict)
    decoders: dict[int, np.ndarray] = field(default_factory=dict)
    waiting: dict[int, Node] = field(default_factory=dict)
    decoded: dict[tuple[int, str], int] = field(default_factory=dict)
    parents: dict[int, tuple[int, int]] = field(default_factory=dict)
    rectified: set[int] = field(default_factory=set)
    outside: Mapping[int, int] = field(default_factory=dict)

    def buffer(
        self, width: int, stage: int, constant: np.ndarray | None = None, name: str = ""
    ) -> int:
        """A new buffer's number."""
        self.buffers.append(Buffer(width, stage, constant, name))
        return len(self.buffers) - 1

    def place(self, at: int, count: int, buffer: int, first: int = 0) -> None:
        """Say where columns of the graph are."""
        self.sources.append(Source(at, count, buffer, first))
        self.sources.sort(key=lambda source: source.at)

    def source(self, column: int) -> Source:
        place = bisect_right(self.sources, column, key=lambda source: source.at) - 1
        source = self.sources[place]
        assert source.at <= column < source.at + source.count, (column, source)
        return source

    def stage(self, pieces: Iterable[Piece]) -> int:
        """Stage of what is computed from these pieces: the user's if all of them are.

        Constants are in every stage.
        """
        return min((self.buffers[buffer].stage for buffer, _, _ in pieces), default=USER)

    def together(self, pieces: list[Piece]) -> list[Piece]:
        """Whole buffers as neighbours within a new one, so that nothing has to be copied.

        Left as they are where one is of another stage, or lies within another buffer already.
        """
        stages = {self.buffers[buffer].stage for buffer, _, _ in pieces}
        names = [buffer for buffer, _, _ in pieces]
        apart = {op.out for op in self.ops if isinstance(op, Linear) and op.times > 1}
        for buffer, at, width in pieces:
            held = self.buffers[buffer]
            if at or width != held.width or held.constant is not None or buffer in apart:
                return pieces
        if len(pieces) < 2 or len(stages) > 1 or len(set(names)) < len(names):
            return pieces
        if self.parents.keys() & set(names):
            return pieces
        parent = self.buffer(sum(piece[2] for piece in pieces), stages.pop())
        at = 0
        for buffer, _, width in pieces:
            self.parents[buffer] = parent, at
            at += width
        return [(parent, 0, at)]

    def settle(self) -> None:
        """Name the buffers that buffers lie in."""
        for op in self.ops:
            op.x, op.y = (joined([self._settled(piece) for piece in of]) for of in (op.x, op.y))
            op.out, op.out_at, _ = self._settled((op.out, 0, 0))
            if isinstance(op, Linear):
                op.counted = self._settled(op.counted)

    def _settled(self, piece: Piece) -> Piece:
        buffer, at, width = piece
        while buffer in self.parents:
            buffer, start = self.parents[buffer]
            at += start
        return buffer, at, width

    def readers(self, node: Node) -> list[Node]:
        """The nodes that read some of a node's columns."""
        return [reader for reader in self.graph.nodes if overlaps(reader, node)]


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours within one buffer as one piece."""
    found: list[Piece] = []
    for buffer, at, width in pieces:
        if found and found[-1][0] == buffer and sum(found[-1][1:]) == at:
            found[-1] = (buffer, found[-1][1], found[-1][2] + width)
        else:
            found.append((buffer, at, width))
    return found


def overlaps(reader: Node, node: Node) -> bool:
    end = node.at + node.width
    runs: tuple[Run, ...] = (*reader.x, *reader.y)
    return any(first < end and node.at < first + n for first, n in runs)
