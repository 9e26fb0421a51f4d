"""Stored rows: the tensors that a compressed layer keeps, in any kind of storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedcomp.storage import kinds
from embedcomp.storage.columns import Columns, columns_of
from embedcomp.storage.kind import State, refuse_beyond
from embedcomp.storage.names import AnyStorage, Storage
from embedcomp.storage.training import Group, Moved, Progress, Trains

LOOKED_UP = 4096  # rows that a read is taken to look up, of which many are worth encoding anew
GRID_RATE = 1.0  # of a grid in units of its own, times the dense rate; 0.03 hardly moves it


class StoredRows(Trains):
    """A matrix [rows, width] in some kind of storage.

    Frozen, it holds the kind's tensors: `stored`, a `grid` where the kind has one, and others.
    Thawed, it holds the float32 parameter `master` [rows, width] instead of `stored`; whatever is
    read goes through the kind's rounding, which gradients pass through. Scales of rows are refitted
    with every rounding. A grid moves by the parameter `moves`, which has its shape, and is read as
    it will be stored; or it stays as it was fitted by `fill`.

    What begins far from where it will end, as means of rows that meet or numbers that were drawn,
    is read in floats for the first part of a run (`read_floats`): a grid that was fitted to what it
    began with would hold it there. Then the grid is fitted to what was learnt.

    Where a row's bytes depend on other rows, thawed rows are read as they were encoded last: all
    are encoded anew after an epoch and, while the module trains, after as many reads of `LOOKED_UP`
    rows as they make up, and whenever they are read in evaluation. So `freeze` changes nothing that
    is read in evaluation.

    Args:
        storage: the kind, or its name where that says all.

    Raises:
        BadSettings: there is no such kind, or none of such rows.
    """

    stored: Tensor | None
    grid: Tensor | None
    master: nn.Parameter | None
    moves: nn.Parameter | None
    reads: Tensor | None  # since all rows were encoded; while thawed
    matters: Tensor | None  # errors of columns; while thawed
    rounds: Tensor | None  # bool, whether what is read is rounded by now; while thawed, if not at
    # first
    weighs = False  # whether training asks what `fill` was told of errors in rows and in columns
    begins_far = False  # set by whoever knows, until it was trained
    unrounded: Tensor | None = None  # what was filled in, within `keeping_unrounded`
    _trainable: Tensor | None = None  # while thawed
    _matters: Tensor | None = None  # errors of columns, where they were filled in
    _encoded_at = (-1, -1)  # the versions of `master` and `moves` that are stored
    _rounds_from = 0.0  # the share of a run
    _fitted_by: tuple[Tensor | None, Tensor | None] = None, None  # weights of rows and of columns,
    # if training may ask

    def __init__(self, rows: int, width: int, storage: AnyStorage):
        super().__init__()
        self.kind = kinds.named(storage) if isinstance(storage, str) else storage
        self.rows, self.width = rows, width
        state = self.kind.empty(rows, width)
        for name in dict.fromkeys(("stored", "grid", *state)):
            self.register_buffer(name, state.get(name))
        self._parts = tuple(state)
        for name in ("reads", "matters", "rounds"):
            self.register_buffer(name, None)
        for name in ("master", "moves"):
            self.register_parameter(name, None)

    @property
    def storage(self) -> str:
        """The kind's name."""
        return self.kind.name

    @property
    def state(self) -> dict[str, Tensor]:
        """The kind's tensors, as far as they are there, with the grid as training moved it."""
        found = {name: getattr(self, name) for name in self._parts}
        if self.moves is not None:
            found["grid"] = self.kind.moved(found["grid"], self.moves)
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def extra_repr(self) -> str:
        parameters = "".join(f", {name} {of}" for name, of in self.kind.parameters.items())
        return f"{self.rows}, {self.width}, {self.storage}{parameters}"

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
        shape = tuple(columns.values.shape)
        assert shape == (self.rows, self.width), (shape, self.rows, self.width)
        if self.kind.together:
            even = torch.ones(self.width, device=self.device)
            self._matters = even if column_weights is None else column_weights.float()
        self._take(self.kind.fill(columns, column_weights))
        if _KEEPS_UNROUNDED.get() or self.weighs:
            self._fitted_by = columns.weights, column_weights
        keeps = _KEEPS_UNROUNDED.get() and self.kind.trainable(self.state, self.width) is None
        self.unrounded = columns.values.contiguous() if keeps else None

    def fill_on(self, values: Tensor, grid: Tensor) -> None:
        """Store values [rows, width] on a grid that was found elsewhere; thawing begins with them.

        Raises:
            CannotStore: a value is not finite in this storage.
        """
        self._take(self.kind.refill(values, {**self.state, "grid": grid}, None))
        self.unrounded = values.clone()

    def _take(self, state: Any) -> None:
        for name, tensor in state.items():
            setattr(self, name, tensor)

    def gather(self, ids: Tensor) -> Tensor:
        """Rows float32 [n, width] of ids [n]; thawed, with a sparse gradient."""
        if self.master is None:
            return self.kind.read(self.state, self.width, ids)
        return self._read(F.embedding(ids, self.master, sparse=True), ids)

    def to_float(self) -> Tensor:
        """The whole matrix, float32 [rows, width]; thawed, with a dense gradient."""
        if self.master is None:
            return self.kind.read(self.state, self.width)
        return self._read(self.master, None)

    def _read(self, values: Tensor, ids: Tensor | None) -> Tensor:
        """Rows of `master`, as they will be stored or in floats."""
        if self._trainable is not None:
            kept = self._trainable
            values = values * (kept if ids is None else kept.index_select(0, ids))
        return values if self.reads_floats else self._rounded(values, ids)

    def _rounded(self, values: Tensor, ids: Tensor | None) -> Tensor:
        """Rows of `master` as they will be stored."""
        if self.kind.together:
            self._encode_anew()
        return self.kind.rounded(values, self.state, ids)

    def _encode_anew(self) -> None:
        """Store what was trained, if it is due; the same in all workers, whatever they look up."""
        assert self.reads is not None
        self.reads += 1
        due = self.reads * LOOKED_UP >= self.rows
        if due if self.training else self._encoded_at != self._versions:
            self._take(self._encoded())

    @property
    def _versions(self) -> tuple[int, int]:
        """Of what is trained: a number changes when its parameter does."""
        assert self.master is not None
        return self.master._version, -1 if self.moves is None else self.moves._version

    @torch.no_grad()
    def _encoded(self) -> State:
        """What is trained as it will be stored, but for the grid."""
        assert self.master is not None
        matters = self._matters if self.matters is None else self.matters
        state = dict(self.kind.refill(self.master.contiguous(), self.state, matters))
        state.pop("grid", None)
        if self.reads is not None:
            self.reads.zero_()
        self._encoded_at = self._versions
        return state

    @property
    def reads_floats(self) -> bool:
        """Whether what is read is not rounded yet."""
        return self.rounds is not None and not self.rounds

    @property
    def settled(self) -> bool:
        return not self.reads_floats

    def read_floats(self, until: float) -> None:
        """Read what is thawed in floats until a share of the run is done, where it has a grid."""
        if self.thawed and self.grid is not None:
            self.rounds, self._rounds_from = torch.zeros((), dtype=torch.bool), until

    def before_step(self, at: Progress) -> None:
        if self.reads_floats and at.share >= self._rounds_from:
            self._begin_to_round()

    @torch.no_grad()
    def _begin_to_round(self) -> None:
        """Fit the grid to what was learnt in floats."""
        assert self.master is not None and self.rounds is not None
        values = self.master if self._trainable is None else self.master * self._trainable
        of_rows, of_columns = self._fitted_by
        self._take(self.kind.fill(columns_of(values.detach(), of_rows), of_columns))
        if self.moves is not None:
            self.moves.zero_()
        if self.kind.together:
            self._encoded_at = self._versions
        else:
            self.stored = None
        self.rounds.fill_(True)

    def groups(self) -> list[Group]:
        return [] if self.moves is None else [Group((self.moves,), "dense", GRID_RATE, l2=0.0)]

    def after_epoch(self, at: Progress) -> list[Moved]:
        """Encode anew where codes depend on one another."""
        if self.master is not None and self.kind.together:
            self._take(self._encoded())
        return []

    def thaw(self, grid: bool = True) -> None:
        """Make it trainable, from what was not rounded yet if that is known.

        Args:
            grid: train its scales, offsets or codewords too, where the kind has some.
        """
        if self.master is not None:
            return
        start = self.to_float() if self.unrounded is None else self.unrounded
        self._trainable = self.kind.trainable(self.state, self.width)
        self.master = nn.Parameter(start.clone())
        self.unrounded = None
        if grid and self.grid is not None:
            still = torch.zeros(self.grid.shape, device=self.grid.device)
            moves = self.kind.moved(self.grid, still) is not None
            self.moves = nn.Parameter(still) if moves else None
        if self.kind.together:
            self.reads = torch.zeros((), dtype=torch.int64)
            self.matters, self._matters = self._matters, None
            self._encoded_at = self._versions
        else:
            self.stored = None

    @torch.no_grad()
    def freeze(self) -> None:
        """Store what was trained; what is read (in evaluation) does not change by a bit.

        Raises:
            CannotStore: training went beyond what the storage holds.
        """
        if self.master is None:
            return
        if self.reads_floats:
            self._begin_to_round()
        state = self._encoded()
        if self.moves is not None:
            assert self.grid is not None
            moved = self.state["grid"]
            refuse_beyond(torch.finfo(self.grid.dtype).max, moved, self.storage)
            state = {**state, "grid": moved.to(self.grid.dtype)}
        self._take(state)
        if self.matters is not None:
            self._matters = self.matters
        self.master = self.moves = self.reads = self.matters = self._trainable = None
        self.rounds, self._fitted_by, self.begins_far = None, (None, None), False


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
