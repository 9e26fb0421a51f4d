"""A graph run by torch, operation by operation: where the compiled engine was not built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from embedcomp.engine.engine import BadId
from embedcomp.engine.standalone import Standalone
from embedcomp.graph.graph import Feature, Node, Run
from embedcomp.modules.table import CompressedTable, kept
from embedcomp.scorer.layers import Layers


class Interpreted:
    """A standalone model whose graph torch runs.

    Args:
        held: the artifact's tensors.
    """

    compiled = False  # to machine code

    def __init__(self, standalone: Standalone, held: Mapping[str, Tensor]):
        assert standalone.graph is not None
        self._standalone, self._graph = standalone, standalone.graph
        self._layers = Layers(standalone, held)
        self._weights = {n: self._layers.weight(n) for n in self._read_by_name()}
        self.resident = self._layers.resident(self._weights)
        self._width = max(node.at + node.width for node in self._graph.nodes)

    def _read_by_name(self) -> set[str]:
        named = {n.name for n in self._graph.nodes if n.op in ("linear", "weight")}
        return named | {node.bias for node in self._graph.nodes if node.bias}

    @torch.inference_mode()
    def logits(self, values: Sequence[Any]) -> Tensor:
        """Logits [B] of the inputs' leaves, in the example's order.

        Raises:
            BadId: an id is out of its table's range.
        """
        kinds = [leaf.kind for leaf in self._standalone.leaves]
        dense = [v for v, kind in zip(values, kinds, strict=True) if kind == "dense"]
        rows = next(
            value.stride() if kind == "jagged" else len(value)
            for value, kind in zip(values, kinds, strict=True)
            if kind != "other"
        )
        columns = torch.empty(rows, self._width)
        for node in self._graph.nodes:
            output = self._made(node, columns, values, dense)
            columns[:, node.at : node.at + node.width] = output.reshape(-1, node.width)
        return columns[:, self._graph.out]

    def _made(
        self, node: Node, columns: Tensor, values: Sequence[Any], dense: list[Tensor]
    ) -> Tensor:
        """What an operation gives, [B, ...]."""
        if node.op == "input":
            flat = dense[node.which].reshape(len(columns), -1)
            return flat[:, node.column : node.column + node.width]
        if node.op == "look_up":
            return self._looked_up(self._graph.features[node.which], node.form, values)
        if node.op == "weight":
            return self._weights[node.name].reshape(1, -1)
        x = _read(columns, node.x)
        if node.op == "linear":
            return self._linear(node, x)
        return _computed(node, x, _read(columns, node.y) if node.y else None)

    def _linear(self, node: Node, x: Tensor) -> Tensor:
        numbers = self._weights[node.name].reshape(-1)
        numbers = numbers[node.column : node.column + node.outputs * node.inputs]
        shape = (node.inputs, node.outputs) if node.form else (node.outputs, node.inputs)
        weight = numbers.view(shape).T if node.form else numbers.view(shape)
        bias = self._weights[node.bias] if node.bias else None
        return torch.nn.functional.linear(x.view(-1, node.times, node.inputs), weight, bias)

    def _looked_up(self, feature: Feature, form: str, values: Sequence[Any]) -> Tensor:
        """Pooled rows of a feature, or their codes."""
        table = self._standalone.tables[feature.table]
        ids, lengths, weights = _ids(feature, values[feature.leaf])
        bad = ids[(ids < 0) | (ids >= table.rows)]
        if len(bad):
            raise BadId(feature.name, int(bad[0]), table.rows)
        layer = self._layers.of(feature.table)
        if layer is None:
            rows = self._layers.held[f"{feature.table}.weight"].index_select(0, ids)
        else:
            assert isinstance(layer, CompressedTable)
            rows = layer.gather(ids)
            if form == "rows":
                rows = layer.decoded(rows, rows.new_ones(1, 1)).expand(len(ids), -1)
        counted = kept(ids, weights, table.padding_idx)
        if counted is not None:
            rows = rows * counted[:, None]
        bag = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        found = rows.new_zeros(len(lengths), rows.shape[1]).index_add_(0, bag, rows)
        if table.pooling != "mean":
            return found
        ones = torch.ones(len(ids)) if counted is None else counted
        total = torch.zeros(len(lengths)).index_add_(0, bag, ones)
        return found / total.clamp_min(1)[:, None]


def _computed(node: Node, x: Tensor, y: Tensor | None) -> Tensor:
    """The result of an operation without a weight, given its inputs."""
    if node.op == "dots":
        vectors = x.view(-1, node.times, node.inputs)
        others = vectors if y is None else y.view(-1, node.outputs, node.inputs)
        return vectors @ others.transpose(1, 2)
    if node.op == "sum":
        return x.view(-1, node.times, node.width).sum(1)
    if node.op == "unary":
        return UNARIES[node.name](x, node.low, node.high)
    assert y is not None
    return BINARIES[node.name](x, y)


def _ids(feature: Feature, value: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids [n] of a feature, how many a row has [B], and their weights [n]."""
    if feature.key is None:
        matrix = value.reshape(len(value), -1)
        matrix = matrix[:, feature.column : feature.column + feature.count]
        lengths = torch.full((len(value),), matrix.shape[1])
        return matrix.reshape(-1), lengths, None
    keys = value.keys()
    place, lengths = keys.index(feature.key), value.lengths().view(len(keys), -1)
    first = int(lengths[:place].sum())
    own = slice(first, first + int(lengths[place].sum()))
    weights = value.weights_or_none()
    held = None if weights is None else weights[own].float()
    return value.values()[own].long(), lengths[place].long(), held


def _read(columns: Tensor, runs: tuple[Run, ...]) -> Tensor:
    return torch.cat([columns[:, first : first + number] for first, number in runs], 1)


UNARIES: Mapping[str, Callable[[Tensor, float, float], Tensor]] = {
    "copy": lambda x, low, high: x,
    "relu": lambda x, low, high: x.relu(),
    "sigmoid": lambda x, low, high: x.sigmoid(),
    "tanh": lambda x, low, high: x.tanh(),
    "gelu": lambda x, low, high: torch.nn.functional.gelu(x),
    "gelu_tanh": lambda x, low, high: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": lambda x, low, high: torch.nn.functional.silu(x),
    "negative": lambda x, low, high: -x,
    "abs": lambda x, low, high: x.abs(),
    "exp": lambda x, low, high: x.exp(),
    "log": lambda x, low, high: x.log(),
    "sqrt": lambda x, low, high: x.sqrt(),
    "rsqrt": lambda x, low, high: x.rsqrt(),
    "square": lambda x, low, high: x.square(),
    "reciprocal": lambda x, low, high: x.reciprocal(),
    "clamp": lambda x, low, high: x.clamp(low, high),
    "logit": lambda x, low, high: x.logit(),
    "softplus": lambda x, low, high: torch.nn.functional.softplus(x),
    "leaky_relu": lambda x, low, high: torch.nn.functional.leaky_relu(x, low),
    "elu": lambda x, low, high: torch.nn.functional.elu(x, low),
    "affine": lambda x, low, high: low * x + high,
}
BINARIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "power": torch.pow,
}
