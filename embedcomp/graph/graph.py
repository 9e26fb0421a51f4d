"""What a model computes for one row, as data: a list of operations on numbered columns.

Every operation makes new columns, numbered on from those before it, and reads any others by runs of
neighbours. So views, slices, concatenations and transpositions are no operations at all: they are
already in the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

Run = tuple[int, int]  # first column, number of columns


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation.

    op                what it gives
    input             columns of dense input `which`, from `column`
    look_up           feature `which`: its pooled rows, or their codes (`form`)
    weight            the numbers of tensor `name`, which are the same for every row
    linear            `times` vectors x [inputs] @ weight [outputs, inputs].T + bias; the weight
                      is in the tensor `name` from number `column` on; `form`: "" or
                      "transposed", if it is [inputs, outputs] there
    dots              products of `times` vectors x [inputs] with `outputs` vectors y
    unary, binary     function `name` of x, or of x and y; low and high are its numbers
    sum               of `times` vectors x [width]
    """

    op: str
    at: int  # first column that it makes
    width: int  # number of columns that it makes
    x: tuple[Run, ...] = ()
    y: tuple[Run, ...] = ()
    which: int = 0
    column: int = 0
    name: str = ""
    bias: str = ""
    form: str = ""
    times: int = 1
    inputs: int = 0
    outputs: int = 0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Ids that look up one table.

    leaf: place of the input that holds the ids.
    key: feature of a jagged input; None: the input is a matrix of ids [B, L], and a bag is its
        columns [column, column + count).
    input: name of that leaf, where the input is a matrix of ids.
    """

    table: str  # name of the table's module
    leaf: int
    key: str | None = None
    column: int = 0
    count: int = 1
    input: str = ""

    @property
    def name(self) -> str:
        source = f"input{self.input or f' {self.leaf}'}"
        return self.key if self.key is not None else f"column {self.column} of {source}"


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One tensor, or one KeyedJaggedTensor, of a model's inputs."""

    name: str  # where it stands, as in "[0]" or "['ids'][1]"
    kind: str  # "dense" float32 [B, width], "ids" int64 [B, width], "jagged", or "other"
    width: int | None = None  # columns of a row; None: the input is [B]
    keys: tuple[str, ...] = ()  # of a jagged input
    weighted: bool = False


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """One call of an embedding module."""

    module: str
    kind: str  # "pooled", "sequences", "bag" or "rows"
    keys: tuple[str, ...] = ()  # of the jagged input
    widths: tuple[int, ...] = ()  # of a pooled collection's outputs; else the shape of a row's
    code_widths: tuple[int, ...] = ()  # of the codes that a folded collection gives
    features: tuple[str, ...] = ()  # of a collection, in the order of its outputs
    tables: tuple[str, ...] = ()  # module of each feature's table
    folded: bool = False  # it gives codes and then rows
    weighted: bool = False
    asked: int = 0  # tensors of ids that it takes
    gives: int = 1  # tensors


@dataclass(frozen=True, kw_only=True)
class Graph:
    """From inputs to the logit, which is column `out`."""

    features: tuple[Feature, ...]
    nodes: tuple[Node, ...]
    out: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "features": [asdict(feature) for feature in self.features],
            "nodes": [_short(node) for node in self.nodes],
            "out": self.out,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Graph:
        nodes = tuple(
            Node(**{**v, **{side: tuple(map(tuple, v.get(side, ()))) for side in "xy"}})
            for v in values["nodes"]
        )
        features = tuple(Feature(**feature) for feature in values["features"])
        return cls(features=features, nodes=nodes, out=values["out"])

    def with_ranks(self, ranks: Mapping[str, int]) -> Graph:
        """The graph in which low-rank layers, by name, have the first of their ranks alone."""
        first = {f"{layer}.first": rank for layer, rank in ranks.items()}
        second = {f"{layer}.second": rank for layer, rank in ranks.items()}
        nodes = []
        for node in self.nodes:
            cut = node
            for other in self.nodes:
                if other.name in first:
                    cut = replace(cut, x=_kept(cut.x, other, first[other.name]))
            if node.name in first:
                rank = first[node.name]
                cut = replace(cut, outputs=rank, width=node.times * rank)
            elif node.name in second:
                cut = replace(cut, inputs=second[node.name])
            nodes.append(cut)
        return replace(self, nodes=tuple(nodes))


def _kept(runs: tuple[Run, ...], node: Node, rank: int) -> tuple[Run, ...]:
    """Runs without what a node no longer makes, once each of its vectors has `rank` numbers."""
    found: list[Run] = []
    for first, number in runs:
        if not node.at <= first < node.at + node.width:
            found.append((first, number))
            continue
        places = (divmod(first + i - node.at, node.outputs) for i in range(number))
        for column in (node.at + vector * rank + i for vector, i in places if i < rank):
            if found and sum(found[-1]) == column:
                found[-1] = found[-1][0], found[-1][1] + 1
            else:
                found.append((column, 1))
    return tuple(found)


def _short(node: Node) -> dict[str, Any]:
    """The fields that are not their defaults."""
    values = asdict(node)
    return {f.name: values[f.name] for f in fields(node) if values[f.name] != f.default}
