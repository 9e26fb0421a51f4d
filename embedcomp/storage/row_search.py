"""Rows and columns that are searched for while they train: the supernet of OptEmbed.

Source: arXiv 2208.04482. A row lives while its numbers together are larger than a threshold of its
table, which is trained with them; and each bag is read in a width that is drawn anew in every step,
so that a model learns to do with any. What does not live and what lies beyond a width reads as
`base`: nothing, as the authors have it, or the mean row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedcomp.storage.rows import StoredRows
from embedcomp.storage.training import Group, Progress, Trains


def lives(excess: Tensor) -> Tensor:
    """1 where a row's size exceeds the threshold and 0 elsewhere, with a gradient near it."""
    found: Tensor = _Step.apply(excess)
    return found


class _Step(torch.autograd.Function):
    """A step whose slope at z is 2 - 4|z| up to 0.4, then 0.4 up to 1, and 0 beyond."""

    @staticmethod
    def forward(ctx: Any, excess: Tensor) -> Tensor:
        ctx.save_for_backward(excess)
        return (excess > 0).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        away = ctx.saved_tensors[0].abs()
        near, far = 2 - 4 * away, torch.full_like(away, 0.4).where(away <= 1, 0.0)
        return gradient * near.where(away <= 0.4, far)


class ThresholdedRows(StoredRows):
    """Rows [rows, width] of which, while thawed, those that do not live are read as `base`.

    Args:
        base: [width], what is read then.
        price: times exp(-threshold), is added to the log loss.
        rate: of the threshold's plain gradient steps, times the dense rate.
    """

    base: Tensor

    def __init__(self, rows: int, base: Tensor, price: float, rate: float):
        super().__init__(rows, len(base), "float32")
        self.register_buffer("base", base.float())
        self.threshold = nn.Parameter(torch.zeros(()))
        self.price, self.rate = price, rate
        self._rank: Tensor | None = None  # of each row by size, once a number of rows is kept
        self._kept = rows

    def _rounded(self, values: Tensor, ids: Tensor | None) -> Tensor:
        off = values - self.base
        if self._rank is None:
            live = lives(_sizes(off) - self.threshold)
        else:
            rank = self._rank if ids is None else self._rank.index_select(0, ids)
            live = (rank < self._kept).float()
        return self.base + off * live[:, None]

    def groups(self) -> list[Group]:
        return [Group((self.threshold,), "sgd", self.rate, l2=0.0)]

    def penalty(self) -> Tensor:
        return self.price * (-self.threshold).exp()

    @property
    def live(self) -> int:
        """Rows that live."""
        return int((self._row_sizes() > self.threshold).sum())

    def order(self) -> Tensor:
        """Rows int64 [rows], the largest first, so that those that live are the first ones."""
        return torch.argsort(self._row_sizes(), descending=True, stable=True)

    def keep(self, rows: int) -> None:
        """From now on read so many rows, the largest ones, whatever the threshold is."""
        if self._rank is None:
            self._rank = torch.argsort(self.order())
        self._kept = rows

    @torch.no_grad()
    def _row_sizes(self) -> Tensor:
        values = self.to_float() if self.master is None else self.master
        return _sizes(values - self.base)


class DrawnWidths(Trains):
    """Bags of pooled rows [B, dim] read in the first columns of an order, the others as the base.

    Args:
        order: int64 [dim], columns, the one that is read in every width first.
        base: [dim].
        salt: tells the draws of one table from another's.

    width: columns that are read in evaluation; at first all.
    """

    order: Tensor
    base: Tensor

    def __init__(self, order: Tensor, base: Tensor, salt: int):
        super().__init__()
        self.dim = self.width = len(order)
        self.salt = salt
        self.register_buffer("order", order)
        self.register_buffer("base", base.float())
        self._drawn: torch.Generator | None = None  # of the present step

    def before_step(self, at: Progress) -> None:
        self._drawn = at.drawn(self.salt)

    def widths(self, bags: int) -> Tensor:
        """The width of each bag: int64 [bags]."""
        if not self.training or self._drawn is None:
            return torch.full((bags,), self.width)
        return torch.randint(1, self.dim + 1, (bags,), generator=self._drawn)

    def forward(self, codes: Tensor, constant: Tensor) -> Tensor:
        """Rows [B, dim] of pooled ones; the base counts `constant` [B, 1] times."""
        place = torch.argsort(self.order)  # of each column in the order
        read = place < self.widths(len(codes))[:, None]
        return codes.where(read, constant * self.base)


def _sizes(off: Tensor) -> Tensor:
    """How far rows [n, width] are from the base: [n]."""
    return off.abs().sum(1)
