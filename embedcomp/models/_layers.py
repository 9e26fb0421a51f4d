"""Parts that several CTR models share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.features import Features

EMBEDDING_STD = 1e-4  # of a new row: an id that training never meets stays close to no effect


def embedding_bags(features: Features, width: int, prefix: str = "") -> EmbeddingBagCollection:
    """A table of `width` a categorical feature; multi-valued features are mean-pooled.

    Output: KeyedTensor of width len(features.ids) * width, in the features' order.
    """
    tables = [
        EmbeddingBagConfig(
            name=_table_name(prefix + feature.name),
            num_embeddings=feature.rows,
            embedding_dim=width,
            feature_names=[feature.name],
            pooling=PoolingType.MEAN,
            init_fn=_small_normal,
        )
        for feature in features.ids
    ]
    return EmbeddingBagCollection(tables=tables)


def mlp(widths: Sequence[int], dropout: float, after_linear: bool = False) -> nn.Sequential:
    """Linear, ReLU and dropout for each step from widths[0] to widths[-1].

    Args:
        after_linear: the input comes from a linear layer, so ReLU and dropout come first.
    """
    layers: list[nn.Module] = [nn.ReLU(), nn.Dropout(dropout)] if after_linear else []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class Fields(nn.Module):
    """One vector a field: a table's row, or a dense feature's own vector times the feature.

    Source of the latter: AutoInt, arXiv 1810.11921, equation 4.
    """

    def __init__(self, features: Features, width: int):
        super().__init__()
        self.count, self.width = len(features.ids) + len(features.dense), width
        self.vectors: nn.Parameter | None = None
        if features.dense:
            vectors = torch.empty(len(features.dense), width)
            self.vectors = nn.Parameter(nn.init.xavier_normal_(vectors))

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        """Rows of the tables [B, F * d] and dense [B, D] -> [B, F + D, d]."""
        fields = rows.unflatten(1, (-1, self.width))
        if self.vectors is None:
            return fields
        return torch.cat([fields, dense.unsqueeze(2) * self.vectors], 1)


class FirstOrder(nn.Module):
    """dense [B, D], sparse -> [B]: a number an id and a factor a dense feature, summed."""

    def __init__(self, features: Features):
        super().__init__()
        self.tables = embedding_bags(features, 1, prefix="first_order_")
        self.dense = nn.Linear(len(features.dense), 1) if features.dense else None

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        logits = self.tables(sparse).values().sum(1)
        return logits if self.dense is None else logits + self.dense(dense).squeeze(1)


def initialised(model: nn.Module) -> nn.Module:
    """The model with Xavier-normal linear layers and zero biases (Glorot and Bengio, 2010)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _small_normal(weight: Tensor) -> Tensor:
    return torch.nn.init.normal_(weight, std=EMBEDDING_STD)


def _table_name(name: str) -> str:
    return name.replace(".", "_")  # a module's name may hold no dot
