"""NFM: a multilayer perceptron on the pooled products of all pairs of fields.

Source: Neural Factorization Machines for Sparse Predictive Analytics, arXiv 1708.05027.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.features import Features
from embedcomp.models._layers import (
    Fields,
    FirstOrder,
    embedding_bags,
    initialised,
    mlp,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    width: int = 16  # columns of every table
    hidden: tuple[int, ...] = (256, 128, 64)  # widths of the perceptron's layers
    dropout: float = 0.0  # after each hidden layer


class NFM(nn.Module):
    """dense [B, D], sparse -> logits [B]; first order and deep parts are summed."""

    def __init__(self, features: Features, settings: Settings):
        super().__init__()
        self.embeddings = embedding_bags(features, settings.width)
        self.fields = Fields(features, settings.width)
        self.first_order = FirstOrder(features)
        self.deep = mlp((settings.width, *settings.hidden), settings.dropout)
        self.out = nn.Linear(settings.hidden[-1], 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        fields = self.fields(self.embeddings(sparse).values(), dense)  # [B, F, d]
        deep = self.out(self.deep(bi_interaction(fields))).squeeze(1)  # [B]
        return deep + self.first_order(dense, sparse)


def bi_interaction(fields: Tensor) -> Tensor:
    """Sum of the element-wise products of all pairs of fields: [B, F, d] -> [B, d]."""
    return 0.5 * (fields.sum(1).square() - fields.square().sum(1))


def build(features: Features, settings: Settings) -> nn.Module:
    return initialised(NFM(features, settings))
