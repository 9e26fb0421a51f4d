"""A model with its lookups taken out, and its compressed linear layers as plain ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embedcomp.errors import BadModel
from embedcomp.graph.graph import LookUp
from embedcomp.modules.embedded import Embedded, folds
from embedcomp.modules.linear import ACTIVATIONS, LowRankLinear, ServedLinear
from embedcomp.modules.ordered import OrderedBag, OrderedEmbedding
from embedcomp.modules.table import CompressedBag, CompressedEmbedding

COLLECTIONS = (EmbeddingBagCollection, EmbeddingCollection)
OURS = (CompressedBag, CompressedEmbedding, OrderedBag, OrderedEmbedding)
TABLES = (nn.EmbeddingBag, nn.Embedding, *OURS)


class CannotExport(BadModel):
    """A model that does not come apart from its lookups, or that torch cannot export."""


class StandIn(nn.Module):
    """Stands in for an embedding module: calls it at first, then gives the outputs set here."""

    def __init__(self, name: str, module: nn.Module, calls: Calls):
        super().__init__()
        self.name, self.calls = name, calls
        self._module = [module]  # not a child: its tables are no weights of the dense part

    @property
    def module(self) -> Any:
        return self._module[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.calls.given is not None and name in ("weight", "to_float", "stored"):
                raise CannotExport(
                    f"the model reads the rows of {self.name} themselves, beside looking them up; "
                    "an artifact that stands alone looks rows up and nothing else"
                ) from None
            return getattr(self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.module, TABLES):
            return self._table(*args, **kwargs)
        if isinstance(self.module, EmbeddingCollection):
            return self._sequences(*args)
        return self._pooled(*args)

    def look_up(self, sparse: KeyedJaggedTensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and rows, each with the dense features, as Embedded.of asks for them."""
        widths = tuple(self._widths())
        if self.calls.given is None:
            found, folded = Embedded.of(self.module, sparse, dense), folds(self.module)
            codes, rows = found.codes, found.values
            outputs = [rows[:, : sum(widths)]]
            if folded:
                outputs.insert(0, codes[:, : codes.shape[1] - dense.shape[1]])
            self.calls.add(self._what("pooled", sparse, widths, folded), outputs)
            return codes, rows
        given = self.calls.next(sparse)
        rows = torch.cat([given[-1], dense], 1)
        return (torch.cat([given[0], dense], 1), rows) if len(given) == 2 else (rows, rows)

    def _widths(self) -> list[int]:
        return [
            c.embedding_dim for c in self.module.embedding_bag_configs() for _ in c.feature_names
        ]

    def _code_widths(self) -> tuple[int, ...]:
        bags = self.module.embedding_bags
        return tuple(
            bags[c.name].code_width if getattr(bags[c.name], "folded", False) else c.embedding_dim
            for c in self.module.embedding_bag_configs()
            for _ in c.feature_names
        )

    def _what(
        self, kind: str, sparse: KeyedJaggedTensor, widths: Sequence[int] = (), folded: bool = False
    ) -> LookUp:
        pooled = kind == "pooled"
        configs = self.module.embedding_bag_configs() if pooled else self.module.embedding_configs()
        inside = "embedding_bags" if pooled else "embeddings"
        weighted = sparse.weights_or_none() is not None and (
            not pooled or self.module.is_weighted()
        )
        features = tuple(name for c in configs for name in c.feature_names)
        return LookUp(
            module=self.name,
            kind=kind,
            keys=tuple(sparse.keys()),
            widths=tuple(widths),
            features=features,
            tables=tuple(
                f"{self.name}.{inside}.{c.name}" for c in configs for _ in c.feature_names
            ),
            code_widths=self._code_widths() if folded else (),
            folded=folded,
            weighted=weighted,
            asked=3 if weighted else 2,
            gives=(2 if folded else 1) if pooled else 2 * len(features),
        )

    def _pooled(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        if self.calls.given is None:
            found = self.module(sparse)
            widths = found.length_per_key()
            self.calls.add(self._what("pooled", sparse, widths), [found.values()])
            return found
        (values,) = self.calls.next(sparse)
        names = self.module._embedding_names
        return KeyedTensor(names, self._widths(), values)

    def _sequences(self, sparse: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        if self.calls.given is None:
            found = self.module(sparse)
            what = self._what("sequences", sparse)
            parts = [t for n in found for t in (found[n].values(), found[n].lengths())]
            self.calls.add(what, parts)
            self.calls.names[self.name] = list(found)
            return found
        given = self.calls.next(sparse)
        names = self.calls.names[self.name]
        return {
            name: JaggedTensor(values=given[2 * i], lengths=given[2 * i + 1])
            for i, name in enumerate(names)
        }

    def _table(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        asked = [t for t in (input, offsets, per_sample_weights) if t is not None]
        if self.calls.given is None:
            bag = isinstance(self.module, nn.EmbeddingBag | CompressedBag)
            if not bag:
                found = self.module(input)
            else:
                found = self.module(input, offsets, per_sample_weights=per_sample_weights)
            what = LookUp(
                module=self.name,
                kind="bag" if bag else "rows",
                tables=(self.name,),
                widths=tuple(found.shape[1:]),
                weighted=per_sample_weights is not None,
                asked=len(asked),
            )
            self.calls.add(what, [found])
            return found
        return self.calls.next(asked)[0]


@dataclass
class Call:
    """What one lookup is, and what it gave."""

    what: LookUp
    outputs: list[Tensor]


@dataclass
class Calls:
    """The lookups of one pass through the model, in their order."""

    made: list[Call] = field(default_factory=list)
    given: Iterator[list[Tensor]] | None = None
    asked: list[Tensor] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    _place: int = 0

    def add(self, what: LookUp, outputs: list[Tensor]) -> None:
        self.made.append(Call(what, [t.detach().clone() for t in outputs]))

    def next(self, asked: Any) -> list[Tensor]:
        """What the next call gives; `asked` is remembered."""
        assert self.given is not None
        if isinstance(asked, KeyedJaggedTensor):
            weights = asked.weights_or_none()
            asked = [asked.values(), asked.lengths(), *(() if weights is None else (weights,))]
        found = next(self.given, None)
        if found is None:
            raise CannotExport("the model makes other lookups when it is exported than when called")
        self.asked += asked[: self.made[self._place].what.asked]
        self._place += 1
        return found

    def begin(self, given: Sequence[list[Tensor]]) -> None:
        self.given, self.asked, self._place = iter(given), [], 0


@contextmanager
def taken_apart(model: nn.Module) -> Iterator[Calls]:
    """The model with a stand-in for each embedding module."""
    if type(model) in (*COLLECTIONS, *TABLES):
        raise CannotExport("the model is an embedding module itself; put it into an nn.Module")
    calls = Calls()
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def walk(parent: nn.Module, path: str) -> None:
        for name, child in list(parent.named_children()):
            if type(child) in (*COLLECTIONS, *TABLES):
                replaced.append((parent, name, child))
                setattr(parent, name, StandIn(f"{path}{name}", child, calls))
            else:
                walk(child, f"{path}{name}.")

    try:
        walk(model, "")
        yield calls
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


class _Factors(nn.Module):
    """A low-rank layer as two plain ones."""

    def __init__(self, layer: LowRankLinear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.first = nn.Parameter(layer.first.to_float().T.contiguous(), False)
        self.second = nn.Parameter(layer.second.to_float().contiguous(), False)
        self.middle, self.bias = layer.middle, _parameter(layer.bias)
        self.activation = None if layer.activation is None else ACTIVATIONS[layer.activation]

    @property
    def weight(self) -> Tensor:
        return self.second @ self.first

    def forward(self, x: Tensor) -> Tensor:
        codes = nn.functional.linear(x, self.first, self.middle)
        if self.activation is not None:
            codes = self.activation(codes)
        return nn.functional.linear(codes, self.second, self.bias)


class _Constant(nn.Module):
    """A layer of rank 0, which puts out its bias."""

    def __init__(self, layer: LowRankLinear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, bias = layer.to_float()
        self.weight = nn.Parameter(weight, False)
        self.bias = _parameter(weight.new_zeros(len(weight)) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x[..., :0], self.weight[:, :0], self.bias)


@contextmanager
def plain_linears(model: nn.Module) -> Iterator[None]:
    """The model with decoded weights in its compressed linear layers."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ServedLinear):
                    replaced.append((parent, name, child))
                    setattr(parent, name, plain_linear(child))
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def plain_linear(layer: ServedLinear) -> nn.Module:
    """The layer with decoded weights."""
    if isinstance(layer, LowRankLinear):
        return _Factors(layer) if layer.first.width else _Constant(layer)
    plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
    weight, bias = layer.to_float()
    plain.weight = nn.Parameter(weight, False)
    plain.register_parameter("bias", _parameter(bias))
    return plain


def _parameter(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach(), False)
