"""Compressed linear layers: one stored weight, two stored factors, both, or two block diagonals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedcomp.storage.names import AnyStorage, Storage
from embedcomp.storage.rounding import straight_through
from embedcomp.storage.rows import Biased, StoredRows

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}


class ServedLinear(Biased, ABC):
    """What compressed linear layers have in common."""

    def __init__(self, inputs: int, outputs: int, bias: Storage | None):
        super().__init__(outputs, bias)
        self.in_features, self.out_features = inputs, outputs

    @abstractmethod
    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, inputs] and bias [outputs]."""

    @property
    def weight(self) -> Tensor:
        """For modules around the layer that read it."""
        return self.to_float()[0]


class CompressedLinear(ServedLinear):
    """x [..., inputs] to x @ weight.T + bias [..., outputs], the weight in some storage.

    Products are in the precision of the weight's kind: in bfloat16 and int8 x is rounded to
    bfloat16, or each of its rows to 256 steps between its smallest and largest number (and 0), as
    the engine does.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: Storage | None,
        storage: AnyStorage,
    ):
        super().__init__(inputs, outputs, bias)
        self.stored = StoredRows(outputs, inputs, storage)

    def forward(self, x: Tensor) -> Tensor:
        if self.stored.kind.precision in ROUNDED:
            x = straight_through(ROUNDED[self.stored.kind.precision], x)
        return F.linear(x, self.stored.to_float(), self.bias)

    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, inputs] and bias [outputs]."""
        return self.stored.to_float(), self.bias


def to_bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def to_bytes(x: Tensor) -> Tensor:
    """Each row of x [..., n] rounded to 256 steps between its smallest and largest number and 0."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    step = (high - low) / 255
    inverse = torch.where(step > 0, 1 / step, 0.0)
    zero = (-low * inverse).round()
    return (((x * inverse).round() + zero).clamp(0, 255) - zero) * step


ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "bfloat16": to_bfloat16,
    "int8": to_bytes,
}


class LowRankLinear(ServedLinear):
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
        bias: Storage | None,
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
        return F.linear(self.codes(x), self.second.to_float(), self.bias)

    def codes(self, x: Tensor) -> Tensor:
        """What the second factor is given: [..., rank]."""
        codes = x @ self.first.to_float()
        if self.activation is not None and self.middle is not None:
            codes = ACTIVATIONS[self.activation](codes + self.middle)
        return codes

    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, inputs] and bias [outputs], as if no activation stood in between."""
        first, second, bias = self.first.to_float(), self.second.to_float(), self.bias
        if self.middle is not None:
            moved = second @ self.middle
            return second @ first.T, moved if bias is None else bias + moved
        return second @ first.T, bias


class CorrectedLinear(ServedLinear):
    """A stored weight and a product of low rank that makes up for what storing it lost.

    x [..., inputs] to x @ weight.T + (x @ first) @ second.T + bias.

    Args:
        storage: of the weight [outputs, inputs].
        factors: storage of both factors.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        *,
        bias: Storage | None,
        storage: AnyStorage,
        factors: AnyStorage,
    ):
        super().__init__(inputs, outputs, bias)
        self.stored = StoredRows(outputs, inputs, storage)
        self.first = StoredRows(inputs, rank, factors)
        self.second = StoredRows(outputs, rank, factors)

    def forward(self, x: Tensor) -> Tensor:
        correction = (x @ self.first.to_float()) @ self.second.to_float().T
        return F.linear(x, self.stored.to_float(), self.bias) + correction

    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, inputs] and bias [outputs]."""
        product = self.second.to_float() @ self.first.to_float().T
        return self.stored.to_float() + product, self.bias


class MonarchLinear(ServedLinear):
    """A square layer as two block-diagonal matrices with a transposition after each.

    Inputs are a matrix [p, q]. Each of its rows is multiplied by a block [q, q], and each column
    of the result by a block [p, p]: p q (p + q) numbers instead of p^2 q^2.

    Args:
        width: inputs and outputs.
        blocks: p, which divides the width.
    """

    def __init__(self, width: int, blocks: int, *, bias: Storage | None, storage: AnyStorage):
        super().__init__(width, width, bias)
        self.p, self.q = blocks, width // blocks
        assert self.p * self.q == width, (width, blocks)
        self.right = StoredRows(self.p * self.q, self.q, storage)  # [p, q out, q in]
        self.left = StoredRows(self.q * self.p, self.p, storage)  # [q, p out, p in]

    def blocks(self) -> tuple[Tensor, Tensor]:
        """Blocks [q, p, p] and [p, q, q], the last ones applied first."""
        left, right = self.left.to_float(), self.right.to_float()
        return left.view(self.q, self.p, self.p), right.view(self.p, self.q, self.q)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.blocks()
        inside = torch.einsum("...iq,ikq->...ik", x.unflatten(-1, (self.p, self.q)), right)
        out = torch.einsum("...ik,koi->...ok", inside, left).flatten(-2)
        bias = self.bias
        return out if bias is None else out + bias

    def to_float(self) -> tuple[Tensor, Tensor | None]:
        """Weight [width, width] and bias [width]."""
        left, right = self.blocks()
        weight = torch.einsum("koi,ikq->okiq", left, right)
        return weight.reshape(self.out_features, self.in_features), self.bias
