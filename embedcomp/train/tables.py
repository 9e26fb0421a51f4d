"""Embedding tables in the form in which they train fast: one lookup and one update for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from embedcomp.storage.training import Group, Trains
from embedcomp.train.workers import Sharded


class FlatTables(Trains):
    """The tables of one EmbeddingBagCollection in a single weight `flat` [rows of all, width].

    Takes what the collection takes and gives what it gives; the gradient of `flat` is sparse.
    """

    def __init__(self, collection: EmbeddingBagCollection):
        super().__init__()
        configs = collection.embedding_bag_configs()
        bags = [collection.embedding_bags[config.name] for config in configs]
        self.flat = Sharded(self._taken(bags))
        self.mode: str = bags[0].mode
        self._configs = configs
        self._names: list[str] = collection._embedding_names
        self._features, first_row = [], 0
        self._first_rows: list[int] = []
        for config in configs:
            self._features += config.feature_names
            self._first_rows += [first_row] * len(config.feature_names)
            first_row += config.num_embeddings

    def groups(self) -> list[Group]:
        return [Group((self.flat,), "rows")]

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        ids, offsets = self._rows(sparse)
        places, rows = self._found(ids)
        pooled = nn.functional.embedding_bag(
            places, rows, offsets, mode=self.mode, sparse=True, include_last_offset=True
        )  # [F * B, width], feature-major
        features, width = len(self._features), self.flat.shape[1]
        values = pooled.view(features, -1, width).transpose(0, 1).reshape(-1, features * width)
        return KeyedTensor(self._names, [width] * features, values)

    def _taken(self, bags: Sequence[nn.EmbeddingBag]) -> Tensor:
        """What `flat` begins with."""
        return torch.cat([bag.weight.detach() for bag in bags])

    def _found(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [n, width] that hold those of `ids`, and where each of these is in them."""
        return ids, self.flat

    def _rows(self, sparse: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Numbers of rows of all tables and offsets [F * B + 1], in the tables' order."""
        sparse = in_order(sparse, self._features)
        per_key = torch.tensor(sparse.length_per_key())
        first_rows = torch.repeat_interleave(torch.tensor(self._first_rows), per_key)
        return sparse.values() + first_rows, sparse.offsets()

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return self._configs

    @torch.no_grad()
    def write_back(self, collection: EmbeddingBagCollection) -> None:
        """Copy the trained rows into the collection's own tables."""
        sizes = [config.num_embeddings for config in self._configs]
        for config, rows in zip(self._configs, self.flat.split(sizes), strict=True):
            collection.embedding_bags[config.name].weight.copy_(rows)


def is_fusable(module: nn.Module) -> bool:
    """Whether a module is a collection of plain float tables of one width and pooling."""
    if not isinstance(module, EmbeddingBagCollection) or module.is_weighted():
        return False
    configs = module.embedding_bag_configs()
    alike = len({(c.embedding_dim, c.pooling) for c in configs}) == 1
    bags = module.embedding_bags.values()
    return alike and all(type(b) is nn.EmbeddingBag and b.padding_idx is None for b in bags)


Form = TypeVar("Form", bound=FlatTables)


@contextmanager
def fast_tables(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block, the model's collections of plain tables are in their fast form."""
    swapped = swap_in(model, FlatTables)
    try:
        yield model
    finally:
        for parent, name, collection, fast in swapped:
            fast.write_back(collection)
            setattr(parent, name, collection)


def swap_in(
    model: nn.Module, form: Callable[[EmbeddingBagCollection], Form]
) -> list[tuple[nn.Module, str, EmbeddingBagCollection, Form]]:
    """Put a fast form in the place of each collection of plain tables.

    Returns:
        Where each was, by its parent and its name there, itself and its form.
    """
    swapped = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_fusable(child):
                swapped.append((parent, name, child, form(child)))
                setattr(parent, name, swapped[-1][-1])
    return swapped


def in_order(sparse: KeyedJaggedTensor, features: Sequence[str]) -> KeyedJaggedTensor:
    """The features in the order asked for, and no others."""
    keys = sparse.keys()
    if keys == features:
        return sparse
    return sparse.permute([keys.index(name) for name in features])
