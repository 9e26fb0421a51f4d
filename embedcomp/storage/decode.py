"""Decoders: from the codes that a table stores to the rows that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from embedcomp.storage.names import Storage
from embedcomp.storage.rows import Biased, StoredRows


class Affine(Biased):
    """Codes [n, k] to rows [n, dim]: codes @ weight + bias.

    Args:
        bias: False for a decoder that is linear; else it is in the weight's storage.
        residual: codes are k numbers and then what is left of each of the `dim` columns.
        most: rows of the weight, of which codes are for the first k; None: k. Tables of different k
            can share a weight whose rows are in order of what they are worth.
    """

    def __init__(
        self,
        k: int,
        dim: int,
        storage: Storage,
        bias: bool,
        residual: bool = False,
        most: int | None = None,
    ):
        super().__init__(dim, storage if bias else None)
        self.k, self.dim, self.residual = k, dim, residual
        rows = k if most is None else most
        self.stored = StoredRows(rows, dim, storage)  # float32 or float16: too small to round more

    def fill(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weight [k or most, dim] and bias [dim] (None for a linear decoder)."""
        self.stored.fill(weight)
        if self.has_bias:
            assert bias is not None
            self.set_bias(bias)

    def forward(self, codes: Tensor, constant: Tensor) -> Tensor:
        """Decode codes [B, k]; the bias counts `constant` [B, 1] times."""
        decoded, bias = codes @ self.matrix(), self.bias
        return decoded if bias is None else decoded + constant * bias

    def matrix(self) -> Tensor:
        """What codes are multiplied by: [k, dim], or [k + dim, dim] with what is left."""
        weight = self.stored.to_float()[: self.k]
        if not self.residual:
            return weight
        return torch.cat([weight, torch.eye(self.dim, device=weight.device)])

    def shift(self) -> Tensor:
        """What the code 0 decodes to: [dim]."""
        bias = self.bias
        return torch.zeros(self.dim, device=self.stored.device) if bias is None else bias


class Scatter(Biased):
    """Codes are some of a row's columns, as differences from the bias; the rest is the bias.

    Args:
        k: columns that are kept; 1 byte each up to 256 columns of a row, 2 beyond.
        storage: of the bias.
    """

    columns: Tensor

    def __init__(self, k: int, dim: int, storage: Storage):
        super().__init__(dim, storage)
        self.dim = dim
        kind = torch.uint8 if dim <= 1 << 8 else torch.int16
        self.register_buffer("columns", torch.zeros(k, dtype=kind))

    def fill(self, columns: Tensor, bias: Tensor) -> None:
        """Take the columns' places [k] and the bias [dim]."""
        self.columns = columns.to(self.columns.dtype)
        self.set_bias(bias)

    def forward(self, codes: Tensor, constant: Tensor) -> Tensor:
        """Decode codes [B, k]; the bias counts `constant` [B, 1] times."""
        rows = (constant * self.shift()).expand(len(codes), -1)
        return rows.index_add(1, self.columns.long(), codes)

    def matrix(self) -> Tensor:
        """The decoder as a matrix [k, dim]."""
        eye = torch.eye(self.dim, device=self.columns.device)
        return eye.index_select(0, self.columns.long())

    def shift(self) -> Tensor:
        """What the code 0 decodes to: [dim]."""
        assert self.bias is not None
        return self.bias


Decoder = Affine | Scatter
