"""Compressed linear layers: one stored weight, or two stored factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedcomp.served.formats import AnyStorage
from embedcomp.served.rows import StoredRows

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}


class _Biased(nn.Module, ABC):
    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)

    @abstractmethod
    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, inputs] and bias [outputs]."""

    @property
    def weight(self) -> Tensor:
        """For modules around the layer that read it."""
        return self.to_float()[0]

    def set_bias(self, bias: Tensor) -> None:
        """Take the bias [outputs]."""
        assert self.bias is not None
        self.bias = nn.Parameter(bias.detach().float().clone())


class CompressedLinear(_Biased):
    """x [..., inputs] to x @ weight.T + bias [..., outputs], the weight in some storage."""

    def __init__(self, inputs: int, outputs: int, bias: bool, storage: AnyStorage):
        super().__init__(inputs, outputs, bias)
        self.stored = StoredRows(outputs, inputs, storage)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.stored.to_float(), self.bias)

    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, inputs] and bias [outputs]."""
        return self.stored.to_float(), self.bias


class LowRankLinear(_Biased):
    """x [..., inputs] to (x @ first) @ second.T + bias, with `rank` numbers in between.

    Both factors are stored with the rank as their width, so that a column_* storage keeps a scale
    a component and nothing a row.

    Args:
        activation: between the factors, with a bias of its own; None for a product of matrices.
    """

    middle: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        *,
        bias: bool,
        storage: AnyStorage,
        activation: str | None = None,
    ):
        super().__init__(inputs, outputs, bias)
        self.first = StoredRows(inputs, rank, storage)
        self.second = StoredRows(outputs, rank, storage)
        self.activation = activation
        middle = None if activation is None else nn.Parameter(torch.zeros(rank))
        self.register_parameter("middle", middle)

    def forward(self, x: Tensor) -> Tensor:
        codes = x @ self.first.to_float()  # [..., rank]
        if self.activation is not None and self.middle is not None:
            codes = ACTIVATIONS[self.activation](codes + self.middle)
        return F.linear(codes, self.second.to_float(), self.bias)

    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, inputs] and bias [outputs], as if no activation stood in between."""
        first, second, bias = self.first.to_float(), self.second.to_float(), self.bias
        if self.middle is not None:
            moved = second @ self.middle
            return second @ first.T, moved if bias is None else bias + moved
        return second @ first.T, bias
