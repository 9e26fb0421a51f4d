"""Stored rows: the tensor that a compressed layer keeps, in any storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedcomp.storage.columns import Columns, columns_of
from embedcomp.storage.formats import (
    AnyStorage,
    Format,
    Storage,
    format_of,
)


class StoredRows(nn.Module):
    """A matrix [rows, width] in some storage.

    Frozen, it holds `stored` (and `grid`, where the storage has one). Thawed, it holds the float32
    parameter `master` [rows, width] instead of `stored`; whatever is read goes through the rounding
    of the storage, whose gradient is taken to be the identity. Scales of rows are refitted with
    every rounding; scales, offsets and bits of columns stay as they were fitted by `fill`, so that
    rows can be rounded one by one.
    """

    stored: Tensor | None
    grid: Tensor | None
    master: nn.Parameter | None
    storage: AnyStorage | Literal["csr", "tiered", "trellis"]
    unrounded: Tensor | None = None  # what was filled in, within `keeping_unrounded`

    def __init__(self, rows: int, width: int, storage: AnyStorage):
        super().__init__()
        self.rows, self.width, self.storage = rows, width, storage
        self.format: Format = format_of(storage)
        self.register_buffer("stored", self.format.empty(rows, width))
        self.register_buffer("grid", self.format.empty_grid(width))
        self.register_parameter("master", None)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.width}, {self.storage}"

    @property
    def thawed(self) -> bool:
        return self.master is not None

    @property
    def device(self) -> torch.device:
        held = self.stored if self.master is None else self.master
        assert held is not None
        return held.device

    def fill(
        self,
        weight: Tensor | Columns,
        row_weights: Tensor | None = None,
        column_weights: Tensor | None = None,
    ) -> None:
        """Store `weight` [rows, width].

        Args:
            row_weights: [rows], how much a row's squared error matters to the columns' scales;
                Columns have their own.
            column_weights: [width], how much a column's does to its share of the bits.

        Raises:
            CannotStore: a value is not finite in this storage.
        """
        columns = columns_of(weight, row_weights)
        values = columns.values.contiguous()
        assert values.shape == (self.rows, self.width), (values.shape, self.rows, self.width)
        self.grid = self._fitted(columns, column_weights)
        self.stored = self._encoded(values).clone()
        self.unrounded = values if _KEEPS_UNROUNDED.get() else None

    def _fitted(self, columns: Columns, column_weights: Tensor | None) -> Tensor | None:
        return self.format.fit(columns, column_weights)

    def _encoded(self, weight: Tensor) -> Tensor:
        return self.format.encode(weight, self.grid)

    def gather(self, ids: Tensor) -> Tensor:
        """Rows float32 [n, width] of ids [n]; thawed, with a sparse gradient."""
        if self.master is not None:
            return self._rounded(F.embedding(ids, self.master, sparse=True))
        assert self.stored is not None
        return self.format.decode(self.stored.index_select(0, ids), self.grid, self.width)

    def to_float(self) -> Tensor:
        """The whole matrix, float32 [rows, width]; thawed, with a dense gradient."""
        if self.master is not None:
            return self._rounded(self.master)
        assert self.stored is not None
        return self.format.decode(self.stored, self.grid, self.width)

    def _rounded(self, values: Tensor) -> Tensor:
        if self.storage == "float32":
            return values
        rounding, grid = self.format, self.grid
        return straight_through(
            lambda v: rounding.decode(rounding.encode(v, grid), grid, v.shape[1]), values
        )

    def thaw(self) -> None:
        """Make it trainable, from what was not rounded yet if that is known."""
        if self.master is None:
            start = self.to_float() if self.unrounded is None else self.unrounded
            self.master = nn.Parameter(start.clone())
            self.stored = self.unrounded = None

    def freeze(self) -> None:
        """Store what was trained; what is read does not change by a bit.

        Raises:
            CannotStore: training went beyond what the storage holds.
        """
        if self.master is None:
            return
        master = self.master.detach().contiguous()
        if self.grid is None:
            self._fitted(Columns(master), None)  # refuses what does not fit
        self.stored = self._encoded(master)
        self.master = None


_KEEPS_UNROUNDED = ContextVar("keeps unrounded", default=False)


@contextmanager
def keeping_unrounded() -> Iterator[None]:
    """Rows that are filled within are thawed to what they were before rounding."""
    token = _KEEPS_UNROUNDED.set(True)
    try:
        yield
    finally:
        _KEEPS_UNROUNDED.reset(token)


class Biased(nn.Module):
    """A layer with a stored bias, or without one.

    Args:
        size: numbers in the bias.
        storage: of the bias; None: there is none.
    """

    stored_bias: StoredRows | None

    def __init__(self, size: int, storage: Storage | None):
        super().__init__()
        stored = None if storage is None else StoredRows(1, size, storage)
        self.register_module("stored_bias", stored)
        self.register_load_state_dict_pre_hook(_renamed_bias)

    @property
    def bias(self) -> Tensor | None:
        """float32 [size]."""
        return None if self.stored_bias is None else self.stored_bias.to_float()[0]

    @property
    def has_bias(self) -> bool:
        return self.stored_bias is not None

    def set_bias(self, bias: Tensor) -> None:
        """Take the bias [size]. Raises CannotStore."""
        assert self.stored_bias is not None
        self.stored_bias.fill(bias[None])


def _renamed_bias(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
    """Artifacts of the first formats hold biases as floats, under the names that layers' have.

    They stay floats, whatever storage a plan would give them now.
    """
    old = state.pop(f"{prefix}bias", None)
    if old is not None:
        module.stored_bias = StoredRows(1, len(old), "float32")
        state[f"{prefix}stored_bias.stored"] = old[None]


def straight_through(rounding: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Values rounded, with the gradient of the identity."""
    rounded: Tensor = _StraightThrough.apply(values, rounding)
    return rounded


class _StraightThrough(torch.autograd.Function):
    """A rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
