"""Embedding tables in the form in which they train fast: one lookup and one update for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from embedcomp.train import workers


class FlatTables(nn.Module):
    """The tables of one EmbeddingBagCollection in a single weight [rows of all, width].

    Takes what the collection takes and gives what it gives; the gradient of `flat` is sparse.
    """

    def __init__(self, collection: EmbeddingBagCollection):
        super().__init__()
        configs = collection.embedding_bag_configs()
        bags = [collection.embedding_bags[config.name] for config in configs]
        self.flat = nn.Parameter(torch.cat([bag.weight.detach() for bag in bags]))
        self.mode: str = bags[0].mode
        self._configs = configs
        self._names: list[str] = collection._embedding_names
        self._features, first_row = [], 0
        self._first_rows: list[int] = []
        for config in configs:
            self._features += config.feature_names
            self._first_rows += [first_row] * len(config.feature_names)
            first_row += config.num_embeddings

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        ids, offsets = self._rows(sparse)
        pooled = nn.functional.embedding_bag(
            ids, self.flat, offsets, mode=self.mode, sparse=True, include_last_offset=True
        )  # [F * B, width], feature-major
        features, width = len(self._features), self.flat.shape[1]
        values = pooled.view(features, -1, width).transpose(0, 1).reshape(-1, features * width)
        return KeyedTensor(self._names, [width] * features, values)

    def _rows(self, sparse: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Rows of `flat` and offsets [F * B + 1], in the tables' order."""
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


class FusedAdagradTables(nn.Module):
    """The tables in fbgemm's fused form: row-wise Adagrad within the backward pass.

    One float of optimizer state a row instead of two a value: the choice for large tables. Where
    several workers train, each looks up the ids of all, since the update is no gradient that could
    be summed afterwards.
    """

    def __init__(self, collection: EmbeddingBagCollection, lr: float, l2: float):
        super().__init__()
        self._lr = lr
        self._configs = collection.embedding_bag_configs()
        self._names: list[str] = collection._embedding_names
        self._features = [name for c in self._configs for name in c.feature_names]
        pooling = self._configs[0].pooling
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [
                (c.num_embeddings, c.embedding_dim, EmbeddingLocation.HOST, ComputeDevice.CPU)
                for c in self._configs
            ],
            feature_table_map=[i for i, c in enumerate(self._configs) for _ in c.feature_names],
            pooling_mode=PoolingMode.MEAN if pooling == PoolingType.MEAN else PoolingMode.SUM,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=lr,
            weight_decay=l2,
            weight_decay_mode=WeightDecayMode.L2,
        )
        for config, rows in self._rows():
            rows.copy_(collection.embedding_bags[config.name].weight.detach())

    def _rows(self) -> list[tuple[EmbeddingBagConfig, Tensor]]:
        weights = self.tables.split_embedding_weights()
        return list(zip(self._configs, (w.detach() for w in weights), strict=True))

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        sparse = in_order(sparse, self._features)
        widths = [c.embedding_dim for c in self._configs for _ in c.feature_names]
        if workers.count() == 1 or not torch.is_grad_enabled():
            return KeyedTensor(self._names, widths, self.tables(sparse.values(), sparse.offsets()))
        everyones, sizes = of_all_workers(sparse)
        pooled = self.tables(everyones.values(), everyones.offsets())  # [B of all, F * width]
        return KeyedTensor(self._names, widths, _Own.apply(pooled, sizes))

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return self._configs

    def set_learning_rate(self, factor: float) -> None:
        self.tables.set_learning_rate(factor * self._lr)

    @torch.no_grad()
    def write_back(self, collection: EmbeddingBagCollection) -> None:
        """Copy the trained rows into the collection's own tables."""
        for config, rows in self._rows():
            collection.embedding_bags[config.name].weight.copy_(rows)


def of_all_workers(sparse: KeyedJaggedTensor) -> tuple[KeyedJaggedTensor, list[int]]:
    """The batches of all workers as one, in the workers' order, and how many rows each has."""
    parts = workers.gathered((sparse.values(), sparse.lengths().view(len(sparse.keys()), -1)))
    by_key = [values.split(lengths.sum(1).tolist()) for values, lengths in parts]
    joined = KeyedJaggedTensor(
        keys=sparse.keys(),
        values=torch.cat([values for key in zip(*by_key, strict=True) for values in key]),
        lengths=torch.cat([lengths for _, lengths in parts], dim=1).view(-1),
    )
    return joined, [lengths.shape[1] for _, lengths in parts]


class _Own(torch.autograd.Function):
    """This worker's rows of what all workers' looked up; its gradient is that of all workers."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, sizes: list[int]) -> Tensor:
        return pooled.split(sizes)[workers.rank()].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return torch.cat(workers.gathered(gradient)), None


def is_fusable(module: nn.Module) -> bool:
    """Whether a module is a collection of plain float tables of one width and pooling."""
    if not isinstance(module, EmbeddingBagCollection) or module.is_weighted():
        return False
    configs = module.embedding_bag_configs()
    alike = len({(c.embedding_dim, c.pooling) for c in configs}) == 1
    bags = module.embedding_bags.values()
    return alike and all(type(b) is nn.EmbeddingBag and b.padding_idx is None for b in bags)


FastTables = FlatTables | FusedAdagradTables


@contextmanager
def fast_tables(
    model: nn.Module, form: Callable[[EmbeddingBagCollection], FastTables] = FlatTables
) -> Iterator[nn.Module]:
    """Within the block, the model's collections of plain tables are in their fast form."""
    swapped: list[tuple[nn.Module, str, EmbeddingBagCollection, FastTables]] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_fusable(child):
                swapped.append((parent, name, child, form(child)))
                setattr(parent, name, swapped[-1][-1])
    try:
        yield model
    finally:
        for parent, name, collection, fast in swapped:
            fast.write_back(collection)
            setattr(parent, name, collection)


def in_order(sparse: KeyedJaggedTensor, features: Sequence[str]) -> KeyedJaggedTensor:
    """The features in the order asked for, and no others."""
    keys = sparse.keys()
    if keys == features:
        return sparse
    return sparse.permute([keys.index(name) for name in features])
