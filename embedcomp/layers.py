"""Parts that several CTR models share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

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


def initialised(model: nn.Module) -> nn.Module:
    """The model with Xavier-normal linear layers and zero biases (Glorot and Bengio, 2010)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def _small_normal(weight: Tensor) -> Tensor:
    return torch.nn.init.normal_(weight, std=EMBEDDING_STD)


def _table_name(name: str) -> str:
    return name.replace(".", "_")  # a module's name may hold no dot
