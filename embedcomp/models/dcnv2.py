"""DCN-V2: a network of explicit feature crosses beside a multilayer perceptron.

Source: DCN V2: Improved Deep & Cross Network, arXiv 2008.13535 (parallel structure).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.features import Features
from embedcomp.models._layers import embedding_bags, initialised, mlp
from embedcomp.modules.embedded import Embedded, ReadsEmbedded


@dataclass(frozen=True, kw_only=True)
class Settings:
    width: int = 16  # columns of every table
    cross_layers: int = 3
    hidden: tuple[int, ...] = (256, 128, 64)  # widths of the perceptron's layers
    dropout: float = 0.0  # after each hidden layer


class DCNV2(nn.Module):
    """dense [B, D], sparse -> logits [B]; X = tables * width + D."""

    def __init__(self, features: Features, settings: Settings):
        super().__init__()
        inputs = len(features.ids) * settings.width + len(features.dense)
        hidden = settings.hidden
        self.embeddings = embedding_bags(features, settings.width)
        self.cross = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(settings.cross_layers))
        self.deep_in = ReadsEmbedded(nn.Linear(inputs, hidden[0]))
        self.deep = mlp(hidden, settings.dropout, after_linear=True)
        self.out = nn.Linear(inputs + hidden[-1], 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        embedded = Embedded.of(self.embeddings, sparse, dense)
        deep = self.deep(self.deep_in(embedded))  # [B, hidden[-1]]
        x0 = crossed = embedded.values  # [B, X]
        for layer in self.cross:
            crossed = crossed + x0 * layer(crossed)  # [B, X]; addcmul has a slower gradient
        return self.out(torch.cat([crossed, deep], dim=1)).squeeze(1)


def build(features: Features, settings: Settings) -> nn.Module:
    return initialised(DCNV2(features, settings))
