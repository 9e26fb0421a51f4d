"""DeepFM: a factorization machine beside a multilayer perceptron on the same tables.

Source: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, arXiv 1703.04247.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.features import Features
from embedcomp.models._layers import embedding_bags, initialised, mlp
from embedcomp.modules.embedded import Embedded, ReadsEmbedded


@dataclass(frozen=True, kw_only=True)
class Settings:
    width: int = 16  # columns of every table
    hidden: tuple[int, ...] = (256, 128, 64)  # widths of the perceptron's layers
    dropout: float = 0.0  # after each hidden layer


class DeepFM(nn.Module):
    """dense [B, D], sparse -> logits [B]; first order, pairwise and deep parts are summed."""

    def __init__(self, features: Features, settings: Settings):
        super().__init__()
        self.tables, self.width = len(features.ids), settings.width
        inputs = self.tables * settings.width + len(features.dense)
        hidden = settings.hidden
        self.embeddings = embedding_bags(features, settings.width)
        self.first_order = embedding_bags(features, 1, prefix="first_order_")
        self.dense_first_order = nn.Linear(len(features.dense), 1) if features.dense else None
        self.deep_in = ReadsEmbedded(nn.Linear(inputs, hidden[0]))
        self.deep = mlp(hidden, settings.dropout, after_linear=True)
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        embedded = Embedded.of(self.embeddings, sparse, dense)
        deep = self.deep(self.deep_in(embedded))  # [B, hidden[-1]]
        logits = self.out(deep).squeeze(1) + self.first_order(sparse).values().sum(1)  # [B]
        if self.dense_first_order is not None:
            logits = logits + self.dense_first_order(dense).squeeze(1)
        return logits + self._pairwise(embedded.values[:, : self.tables * self.width])

    def _pairwise(self, embedded: Tensor) -> Tensor:
        """Sum of the dot products of all pairs of fields: [B, F * d] -> [B]."""
        fields = embedded.view(-1, self.tables, self.width)  # [B, F, d]
        total = fields.sum(1)  # [B, d]
        return 0.5 * (total.square().sum(1) - embedded.square().sum(1))


def build(features: Features, settings: Settings) -> nn.Module:
    return initialised(DeepFM(features, settings))
