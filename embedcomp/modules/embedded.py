"""What the tables of a model put out for a batch, and decoders folded into the layers that read it.

A decoder maps a table's codes onto its rows by an affine map. Where a linear layer reads nothing
but the concatenated rows, that map can be multiplied into the layer once and for all, exactly; the
layer then reads the codes and becomes narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.modules.table import CompressedBag


class Embedded:
    """The tables' output for a batch, both decoded and as codes.

    values: float32 [B, tables' widths + D], the tables in their collection's order, then the dense
        features; decoded on first use.
    codes: float32 [B, code widths + D], the same with the codes of the folded tables.
    """

    def __init__(self, codes: Tensor, decode: Callable[[], Tensor]):
        self.codes, self._decode = codes, decode
        self._values: Tensor | None = None

    @classmethod
    def of(cls, embeddings: nn.Module, sparse: KeyedJaggedTensor, dense: Tensor) -> Embedded:
        """Look up a batch.

        Args:
            embeddings: anything that makes a KeyedTensor of `sparse`.
            dense: float32 [B, D].
        """
        look_up = getattr(embeddings, "look_up", None)
        if look_up is not None:  # what stands for a collection while a model is exported
            codes, rows = look_up(sparse, dense)
            return cls(codes, lambda: rows)
        if isinstance(embeddings, EmbeddingBagCollection) and folds(embeddings):
            looked_up = _look_up(embeddings, sparse)
            codes = torch.cat([part.codes for part in looked_up] + [dense], 1)
            return cls(codes, lambda: torch.cat([p.decoded() for p in looked_up] + [dense], 1))
        values = torch.cat([embeddings(sparse).values(), dense], 1)
        return cls(values, lambda: values)

    @property
    def values(self) -> Tensor:
        if self._values is None:
            self._values = self._decode()
        return self._values


class _Pooled(NamedTuple):
    """One feature's pooled rows, [B, d], or its codes [B, k] and what it takes to decode them."""

    codes: Tensor
    constant: Tensor | None = None  # [B, 1]
    bag: CompressedBag | None = None

    def decoded(self) -> Tensor:
        if self.bag is None or self.constant is None:
            return self.codes
        return self.bag.decoded(self.codes, self.constant)


def folds(embeddings: EmbeddingBagCollection) -> bool:
    """Whether it gives codes, since decoders are folded into the layers that read them."""
    return any(getattr(bag, "folded", False) for bag in embeddings.embedding_bags.values())


def _look_up(embeddings: EmbeddingBagCollection, sparse: KeyedJaggedTensor) -> list[_Pooled]:
    features = sparse.to_dict()
    found = []
    for config in embeddings.embedding_bag_configs():
        bag = embeddings.embedding_bags[config.name]
        for name in config.feature_names:
            ids = features[name]
            weights = ids.weights() if embeddings.is_weighted() else None
            if getattr(bag, "folded", False):
                codes, constant = bag.codes(ids.values(), ids.offsets(), weights)
                found.append(_Pooled(codes, constant, bag))
            else:
                found.append(_Pooled(bag(ids.values(), ids.offsets(), per_sample_weights=weights)))
    return found


class ReadsEmbedded(nn.Module):
    """A linear layer that reads what the tables put out, and nothing else.

    Args:
        linear: takes the tables' widths and then D dense features.
        collection: attribute of the module around the reader that holds the tables.
    """

    folded = False  # reads codes instead of rows

    def __init__(self, linear: nn.Linear, collection: str = "embeddings"):
        super().__init__()
        self.linear: nn.Module = linear
        self.collection = collection

    def forward(self, x: Embedded) -> Tensor:
        return self.linear(x.codes if self.folded else x.values)


@dataclass(frozen=True)
class Block:
    """One feature's columns in what the tables put out."""

    table: str  # name of the table's module in the model
    features: tuple[str, ...]  # all features that read the table
    dim: int


@dataclass(frozen=True)
class Reader:
    """A ReadsEmbedded of a model and the columns that it reads, without the dense ones."""

    module: ReadsEmbedded
    blocks: tuple[Block, ...]


def readers(model: nn.Module) -> dict[str, Reader]:
    """The readers that decoders can be folded into, by the name of their linear layer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ReadsEmbedded):
            around = name.rpartition(".")[0]
            blocks = _blocks(model, f"{around}.{module.collection}".lstrip("."))
            if blocks:
                found[f"{name}.linear"] = Reader(module, blocks)
    return found


def _blocks(model: nn.Module, name: str) -> tuple[Block, ...]:
    """Columns of the collection with this name; none where decoders cannot be folded."""
    collection = model.get_submodule(name)
    if not isinstance(collection, EmbeddingBagCollection) or collection.is_weighted():
        return ()
    return tuple(
        Block(f"{name}.embedding_bags.{c.name}", tuple(c.feature_names), c.embedding_dim)
        for c in collection.embedding_bag_configs()
        for _ in c.feature_names
    )


def can_fold(block: Block, table: nn.Module, single_valued: set[str]) -> bool:
    """Whether folding is exact and makes the reader narrower.

    A table of a multi-valued feature has empty bags, whose bias is not there to be folded.
    """
    return (
        isinstance(table, CompressedBag)
        and table.folds
        and table.decode is not None
        and table.code_width < table.dim
        and single_valued.issuperset(block.features)
    )


def fold(
    model: nn.Module, single_valued: set[str], among: Collection[str] | None = None
) -> list[str]:
    """Fold decoders into the ReadsEmbedded layers of a model, in place.

    Call it when the tables have been swapped and the readers' layers have not.

    Args:
        single_valued: features with exactly one id in every row.
        among: names of the linear layers to fold into; None: all.

    Returns:
        Names of the readers' linear layers that were folded.
    """
    folded = []
    for name, reader in readers(model).items():
        if among is not None and name not in among:
            continue
        decoders: list[Decoder | int] = []
        for block in reader.blocks:
            table = model.get_submodule(block.table)
            if can_fold(block, table, single_valued):
                decoders.append(_decoder(table))
                table.folded = True  # type: ignore[assignment]
            else:
                decoders.append(block.dim)
        if not all(isinstance(decoder, int) for decoder in decoders):
            assert isinstance(reader.module.linear, nn.Linear), "fold before swapping linear layers"
            reader.module.linear = _narrowed(reader.module.linear, decoders)
            reader.module.folded = True
            folded.append(name)
    return folded


class Decoder(NamedTuple):
    """Codes [B, k] to rows [B, d]: codes @ weight + bias."""

    weight: Tensor  # [k, d]
    bias: Tensor  # [d]


def _decoder(table: nn.Module) -> Decoder:
    assert isinstance(table, CompressedBag) and table.decode is not None
    return Decoder(table.decode.matrix().detach(), table.decode.shift().detach())


def _narrowed(linear: nn.Linear, decoders: Sequence[Decoder | int]) -> nn.Linear:
    bias = None if linear.bias is None else linear.bias.detach()
    weight, bias = fold_weight(linear.weight.detach(), bias, decoders)
    narrow = nn.Linear(1, weight.shape[0], device="meta")  # torch warns if it makes an empty weight
    narrow.in_features = weight.shape[1]
    narrow.weight, narrow.bias = nn.Parameter(weight), nn.Parameter(bias)
    return narrow


def fold_weight(
    weight: Tensor, bias: Tensor | None, decoders: Sequence[Decoder | int]
) -> tuple[Tensor, Tensor]:
    """Multiply decoders into a linear layer; weight [h, sum of k + D] and bias [h] in float32.

    Args:
        weight: [h, sum of d + D].
        decoders: a block's decoder, or the width of a block that stays as it is.
    """
    wide = weight.double()
    moved = torch.zeros_like(wide[:, 0]) if bias is None else bias.double()
    parts, start = [], 0
    for decoder in decoders:
        width = decoder if isinstance(decoder, int) else decoder.weight.shape[1]
        columns = wide[:, start : start + width]
        start += width
        if isinstance(decoder, int):
            parts.append(columns)
        else:
            parts.append(columns @ decoder.weight.double().T)
            moved = moved + columns @ decoder.bias.double()
    parts.append(wide[:, start:])  # the dense features
    return torch.cat(parts, 1).float(), moved.float()
