"""AutoInt: self-attention between fields beside a multilayer perceptron on the same tables.

Source: AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks,
arXiv 1810.11921 (with the perceptron: AutoInt+).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.errors import BadSettings
from embedcomp.log.features import Features
from embedcomp.models._layers import (
    Fields,
    embedding_bags,
    initialised,
    mlp,
)
from embedcomp.modules.embedded import Embedded, ReadsEmbedded


@dataclass(frozen=True, kw_only=True)
class Settings:
    width: int = 16  # columns of every table
    attention_layers: int = 2
    attention_width: int = 64  # of a field after an attention layer, all heads together
    heads: int = 2
    hidden: tuple[int, ...] = (256, 128, 64)  # widths of the perceptron's layers
    dropout: float = 0.0  # after each hidden layer

    def __post_init__(self) -> None:
        if self.heads < 1 or self.attention_width % self.heads:
            raise BadSettings(
                f"an attention_width of {self.attention_width} cannot be shared by {self.heads} "
                "heads; make it a multiple of heads"
            )


class Attention(nn.Module):
    """[B, F, inputs] -> [B, F, outputs]: every field is mixed with those it resembles."""

    def __init__(self, inputs: int, outputs: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(inputs, outputs, bias=False)
        self.key = nn.Linear(inputs, outputs, bias=False)
        self.value = nn.Linear(inputs, outputs, bias=False)
        self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        query, key, value = (self._by_head(layer(fields)) for layer in layers)  # [B, heads, F, w]
        scale = query.shape[3] ** -0.5
        weights = torch.softmax(query @ key.transpose(2, 3) * scale, dim=3)  # [B, heads, F, F]
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # [B, F, outputs]
        return torch.relu(mixed + self.residual(fields))

    def _by_head(self, fields: Tensor) -> Tensor:
        return fields.unflatten(2, (self.heads, -1)).transpose(1, 2)


class AutoInt(nn.Module):
    """dense [B, D], sparse -> logits [B]; the attention's part and the deep one are summed."""

    def __init__(self, features: Features, settings: Settings):
        super().__init__()
        inputs = len(features.ids) * settings.width + len(features.dense)
        hidden = settings.hidden
        widths = [settings.width] + [settings.attention_width] * settings.attention_layers
        self.dense = len(features.dense)
        self.embeddings = embedding_bags(features, settings.width)
        self.fields = Fields(features, settings.width)
        self.attention = nn.Sequential(*(Attention(*w, settings.heads) for w in pairwise(widths)))
        self.attention_out = nn.Linear(self.fields.count * widths[-1], 1)
        self.deep_in = ReadsEmbedded(nn.Linear(inputs, hidden[0]))
        self.deep = mlp(hidden, settings.dropout, after_linear=True)
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        embedded = Embedded.of(self.embeddings, sparse, dense)
        deep = self.out(self.deep(self.deep_in(embedded))).squeeze(1)  # [B]
        rows = embedded.values[:, : embedded.values.shape[1] - self.dense]
        attended = self.attention(self.fields(rows, dense))  # [B, F, attention_width]
        return deep + self.attention_out(attended.flatten(1)).squeeze(1)


def build(features: Features, settings: Settings) -> nn.Module:
    return initialised(AutoInt(features, settings))
