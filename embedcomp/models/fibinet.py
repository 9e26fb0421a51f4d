"""FiBiNET: bilinear products of all pairs of fields, as they are and reweighed, under a perceptron.

Source: FiBiNET: Combining Feature Importance and Bilinear feature Interaction for Click-Through
Rate Prediction, arXiv 1905.09433.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.errors import BadSettings
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
    reduction: int = 3  # times fewer numbers than fields in SENET's middle
    bilinear: Literal["all", "each", "interaction"] = "interaction"  # a matrix for all fields, for
    # each one, or for each pair
    hidden: tuple[int, ...] = (256, 128, 64)  # widths of the perceptron's layers
    dropout: float = 0.0  # after each hidden layer

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise BadSettings(
                f"reduction is {self.reduction}, but SENET divides fields by 1 or more"
            )


class SENET(nn.Module):
    """[B, F, d] -> [B, F, d]: each field times a weight made of all fields' means."""

    def __init__(self, fields: int, reduction: int):
        super().__init__()
        middle = max(1, fields // reduction)
        self.weights = nn.Sequential(
            nn.Linear(fields, middle, bias=False),
            nn.ReLU(),
            nn.Linear(middle, fields, bias=False),
            nn.ReLU(),
        )

    def forward(self, fields: Tensor) -> Tensor:
        return fields * self.weights(fields.mean(2)).unsqueeze(2)


class Bilinear(nn.Module):
    """(W v_i) * v_j for all pairs i < j: [B, F, d] -> [B, pairs * d].

    Field i's matrices for all its pairs are one layer, which stacks them.
    """

    def __init__(self, fields: int, width: int, kind: str):
        super().__init__()
        pairs = range(fields - 1, 0, -1)  # of each field with those after it
        counts = {"all": [1], "each": [1] * (fields - 1), "interaction": pairs}[kind]
        self.layers = nn.ModuleList(nn.Linear(width, n * width, bias=False) for n in counts)

    def forward(self, fields: Tensor) -> Tensor:
        count, width = fields.shape[1:]
        products = []
        for i in range(count - 1):
            layer = self.layers[i if len(self.layers) > 1 else 0]
            mapped = layer(fields[:, i]).unflatten(1, (-1, width))  # [B, 1 or pairs of i, d]
            products.append(mapped * fields[:, i + 1 :])
        return torch.cat(products, 1).flatten(1)


class FiBiNET(nn.Module):
    """dense [B, D], sparse -> logits [B]; first order and deep parts are summed."""

    def __init__(self, features: Features, settings: Settings):
        super().__init__()
        self.embeddings = embedding_bags(features, settings.width)
        self.fields = Fields(features, settings.width)
        count, width = self.fields.count, settings.width
        if count < 2:
            raise BadSettings("fibinet multiplies pairs of features, but the log has only one")
        self.first_order = FirstOrder(features)
        self.senet = SENET(count, settings.reduction)
        self.bilinear = Bilinear(count, width, settings.bilinear)
        self.deep = mlp((count * (count - 1) * width, *settings.hidden), settings.dropout)
        self.out = nn.Linear(settings.hidden[-1], 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        fields = self.fields(self.embeddings(sparse).values(), dense)  # [B, F, d]
        products = [self.bilinear(fields), self.bilinear(self.senet(fields))]
        deep = self.out(self.deep(torch.cat(products, 1))).squeeze(1)  # [B]
        return deep + self.first_order(dense, sparse)


def build(features: Features, settings: Settings) -> nn.Module:
    return initialised(FiBiNET(features, settings))
