"""DLRM: dot products of all pairs of embeddings under a multilayer perceptron.

Source: Deep Learning Recommendation Model for Personalization and Recommendation Systems,
arXiv 1906.00091.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.features import Features
from embedcomp.models._layers import embedding_bags, initialised, mlp


@dataclass(frozen=True, kw_only=True)
class Settings:
    width: int = 16  # columns of every table, and the bottom perceptron's output
    bottom: tuple[int, ...] = (64,)  # hidden widths of the perceptron on the dense features
    hidden: tuple[int, ...] = (256, 128, 64)  # widths of the top perceptron's layers
    dropout: float = 0.0  # after each hidden layer of the top perceptron


class DLRM(nn.Module):
    """dense [B, D], sparse -> logits [B]. A log without dense features has no bottom part."""

    def __init__(self, features: Features, settings: Settings):
        super().__init__()
        self.width = settings.width
        self.embeddings = embedding_bags(features, settings.width)
        self.bottom = (
            mlp((len(features.dense), *settings.bottom, settings.width), dropout=0.0)
            if features.dense
            else None
        )
        vectors = len(features.ids) + (self.bottom is not None)
        pairs = vectors * (vectors - 1) // 2
        inputs = pairs + (settings.width if self.bottom is not None else 0)
        self.top = mlp((inputs, *settings.hidden), settings.dropout)
        self.out = nn.Linear(settings.hidden[-1], 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        vectors = self.embeddings(sparse).values().unflatten(1, (-1, self.width))  # [B, F, d]
        parts = []
        if self.bottom is not None:
            below = self.bottom(dense)  # [B, d]
            vectors = torch.cat([below.unsqueeze(1), vectors], dim=1)  # [B, F + 1, d]
            parts.append(below)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))  # [B, F + 1, F + 1]
        first, second = torch.triu_indices(dots.shape[1], dots.shape[2], offset=1)
        parts.append(dots[:, first, second])  # [B, pairs]
        return self.out(self.top(torch.cat(parts, dim=1))).squeeze(1)


def build(features: Features, settings: Settings) -> nn.Module:
    return initialised(DLRM(features, settings))
