"""What there is to say about a kind of stored rows.

A kind is one file in `embedcomp/storage/kinds` with

    named(name, **parameters) -> Kind | None   the kind by its description in an artifact
    examples(rows, width) -> list[Kind]        those whose cost `embedcomp calibrate` measures

and a frozen dataclass, a Kind, which says how rows become bytes and numbers again (in torch), where
the engine finds them, and what it costs the engine to read one. Scoring needs no torch, so these
files import it only when they use it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedcomp.errors import EmbedcompError
from embedcomp.kernels import native
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedcomp.storage.columns import Columns

State = Mapping[str, "Tensor"]  # the tensors of stored rows by name: "stored", "grid", ...

FP16_MAX = 65504.0


class CannotStore(EmbedcompError):
    """Values that a storage would turn into something that is not a number."""

    def __init__(self, largest: float, storage: str):
        super().__init__(
            f"values up to {largest:.3g} do not fit {storage}, whose 16-bit floats end at "
            f"{FP16_MAX:,.0f}; use float32 or a column_* storage"
        )


def refuse_beyond(most: float, values: Tensor, storage: str) -> None:
    """Raises CannotStore if a magnitude is larger than `most`, or is not a number."""
    largest = values.abs().max().nan_to_num(float("inf")).item() if values.numel() else 0.0
    if largest > most:
        raise CannotStore(largest, storage)


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Work of reading a row.

    kind: of work, which `embedcomp calibrate` finds the time of.
    numbers: that a row is made of, without those that are left out as zeros.
    vectors: that they are summed in.
    stored_bytes: of all rows.
    index: kind of work of finding a stored row of an id; None: it takes none.
    rows: stored rows that an id reads.
    mixed: they become one row before ids are summed.
    """

    kind: str
    numbers: float
    vectors: int
    row_bytes: int
    stored_bytes: int
    index: str | None = None
    rows: int = 1
    mixed: bool = False


def vectors(width: int) -> int:
    """Vector registers that a row of `width` numbers takes."""
    return -(-width // native.VECTOR)


@dataclass(frozen=True)
class Located:
    """Where the engine finds stored rows.

    grid: float32 [2, width], scales and offsets of what it reads as whole numbers; None: it reads
        the numbers themselves.
    held: arrays that must be kept as long.
    """

    rows: native.Stored
    grid: np.ndarray | None
    held: tuple[Any, ...]


def as_floats(array: np.ndarray) -> np.ndarray:
    """Floats of any kind as float32; those of no kind that numpy has are bits of bfloat16."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Kind(ABC):
    """How the rows of a matrix are stored.

    together: a row's bytes depend on other rows, so that trained rows are all encoded anew.
    scaled: the engine reads whole numbers, and their scales are in what decodes them.
    nested: a row begins with the bytes of its first columns, whichever those are, so that `first`
        can take them.
    """

    together: ClassVar[bool] = False
    nested: ClassVar[bool] = False
    scaled: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The kind in an artifact and in settings."""

    @property
    def precision(self) -> str:
        """Precision of products with such a matrix, where it is a linear layer's weight."""
        return "float32"

    @property
    def parameters(self) -> dict[str, Any]:
        """What an artifact says of it beside its name."""
        return {}

    @property
    def described(self) -> str | dict[str, Any]:
        """What an artifact says of it: its name, or a dictionary that has it."""
        return {"name": self.name, **self.parameters} if self.parameters else self.name

    @abstractmethod
    def empty(self, rows: int, width: int) -> State:
        """Tensors of the right shapes, whatever is in them."""

    @abstractmethod
    def fill(self, columns: Columns, matters: Tensor | None) -> State:
        """Tensors that hold these columns.

        Args:
            matters: [width], how much a squared error in a column does; None: all the same.

        Raises:
            CannotStore: a value is not finite in this kind.
        """

    @abstractmethod
    def refill(self, values: Tensor, state: State, matters: Tensor | None) -> State:
        """Tensors that hold other values [rows, width] on the grid that there is.

        Raises:
            CannotStore: a value is not finite in this kind.
        """

    @abstractmethod
    def read(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        """Rows float32 [n, width]: those of ids [n], or all."""

    @abstractmethod
    def take(self, state: State, ids: Tensor, width: int) -> tuple[Kind, State]:
        """Some rows, as they are stored: the same numbers are read of them.

        The grid, which all rows share, stays.

        Args:
            ids: int64 [n], ascending, each once.
        """

    @abstractmethod
    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        """What values [n, width] of these rows would be read as, on the grid that there is.

        Gradients pass through the rounding to the values, and to the grid where it takes one.
        """

    def moved(self, grid: Tensor, by: Tensor) -> Tensor | None:
        """The grid after training moved it, float32, with numbers that it can be stored in.

        Args:
            by: float32 of the grid's shape, in units of what it holds; 0 leaves it as it is. What
                must stay takes no gradient.

        Returns:
            None where there is nothing to train.
        """
        return None

    def trainable(self, state: State, width: int) -> Tensor | None:
        """Which elements can be other than zero, 0 or 1 [rows, width]; None: all of them."""
        return None

    @abstractmethod
    def located(
        self, held: Mapping[str, np.ndarray], rows: int, width: int, padding: int
    ) -> Located:
        """Where the engine finds the rows.

        Args:
            held: the tensors as arrays, by name.
            padding: id that counts for nothing, or -1.
        """

    def located_like(
        self, like: Located, held: Mapping[str, np.ndarray], rows: int, width: int
    ) -> Located:
        """Where rows are that share their grid with others, which were located before.

        What is made of the grid is not made again.

        Args:
            like: where the others are, which `take` took of the same rows.
        """
        return self.located(held, rows, width, -1)

    @abstractmethod
    def reads(self, rows: int, width: int) -> Reads:
        """Work of reading a row."""


@dataclass(frozen=True)
class RowByRow(Kind):
    """Rows that are stored each by itself, on a `grid` that all of them share.

    So rounding some rows gives what rounding all of them gives.
    """

    @property
    def engine(self) -> str:
        """Kind of rows in native.KINDS."""
        return self.name

    @abstractmethod
    def row_bytes(self, width: int) -> int: ...

    def empty_rows(self, rows: int, width: int) -> Tensor:
        """Stored rows [rows, ...]."""
        return torch.empty(rows, self.row_bytes(width), dtype=torch.uint8)

    def empty_grid(self, width: int) -> Tensor | None:
        """An empty grid for rows of `width` numbers; None if the kind has none."""
        return None

    @abstractmethod
    def fit(self, columns: Columns, matters: Tensor | None) -> Tensor | None:
        """The grid for these columns. Raises CannotStore."""

    @abstractmethod
    def encode(self, values: Tensor, grid: Tensor | None) -> Tensor:
        """Values float32 [n, width] as stored rows."""

    @abstractmethod
    def decode(self, stored: Tensor, grid: Tensor | None, width: int) -> Tensor:
        """Stored rows as float32 [n, width]."""

    def empty(self, rows: int, width: int) -> State:
        return _with_grid(self.empty_rows(rows, width), self.empty_grid(width))

    def fill(self, columns: Columns, matters: Tensor | None) -> State:
        grid = self.fit(columns, matters)
        return _with_grid(self.encode(columns.values.contiguous(), grid).clone(), grid)

    def refill(self, values: Tensor, state: State, matters: Tensor | None) -> State:
        from embedcomp.storage.columns import Columns

        grid = state.get("grid")
        if grid is None:
            self.fit(Columns(values), None)  # refuses what does not fit
        return _with_grid(self.encode(values, grid), grid)

    def read(self, state: State, width: int, ids: Tensor | None = None) -> Tensor:
        stored = state["stored"] if ids is None else state["stored"].index_select(0, ids)
        return self.decode(stored, state.get("grid"), width)

    def take(self, state: State, ids: Tensor, width: int) -> tuple[Kind, State]:
        return self, {**state, "stored": state["stored"].index_select(0, ids)}

    def rounded(self, values: Tensor, state: State, ids: Tensor | None = None) -> Tensor:
        from embedcomp.storage.rounding import sloped

        grid = state.get("grid")
        with torch.no_grad():
            stored = self.encode(values, grid)
        return sloped(self.decode(stored, grid, values.shape[1]), values)

    def first(self, state: Mapping[str, Any], width: int) -> dict[str, Any]:
        """The first columns of rows as they are stored, the same bytes; of a `nested` kind.

        Args:
            state: arrays of numpy or torch, of which views are given.
        """
        assert self.nested, self.name
        size = self.row_bytes(width) // state["stored"].itemsize
        return {
            name: held[:, : size if name == "stored" else width] for name, held in state.items()
        }

    def located(
        self, held: Mapping[str, np.ndarray], rows: int, width: int, padding: int
    ) -> Located:
        stored = held["stored"]
        at = native.Stored(
            rows=native.address(stored),
            row_bytes=stored.shape[1] * stored.itemsize,
            num_ids=rows,
            kind=native.KINDS[self.engine],
            width=width,
            padding=padding,
            last=rows - 1,
        )
        grid = held.get("grid")
        known, kept = self.decoding(at, None if grid is None else as_floats(grid))
        return Located(at, known, (stored, *kept))

    def located_like(
        self, like: Located, held: Mapping[str, np.ndarray], rows: int, width: int
    ) -> Located:
        stored, at = held["stored"], native.Stored.from_buffer_copy(like.rows)
        at.rows, at.num_ids, at.last = native.address(stored), rows, rows - 1
        return Located(at, like.grid, (stored, like))

    def decoding(
        self, at: native.Stored, grid: np.ndarray | None
    ) -> tuple[np.ndarray | None, tuple[Any, ...]]:
        """Say in `at` what else it takes to read a row.

        Returns:
            Scales and offsets [2, width] where the engine reads whole numbers, and arrays that
            must be kept.
        """
        return None, ()

    def reads(self, rows: int, width: int) -> Reads:
        return Reads(
            kind=self.engine,
            numbers=width,
            vectors=vectors(width),
            row_bytes=self.row_bytes(width),
            stored_bytes=rows * self.row_bytes(width),
        )


def _with_grid(stored: Tensor, grid: Tensor | None) -> State:
    return {"stored": stored} if grid is None else {"stored": stored, "grid": grid}
