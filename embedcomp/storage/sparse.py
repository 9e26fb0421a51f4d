"""Rows of chunks whose mask moves while they train, until it is the one that is served.

A chunk is dead or alive (storage/kinds/chunked.py). Dead ones are read as zeros, and gradients
reach them all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from embedcomp.storage.kinds.chunked import Chunked, costs, cut, most, spread
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.training import Moved, Progress, Trains


@dataclass(frozen=True)
class Schedule:
    """When a mask moves: `moves` times, evenly over a part of a run, or as often as it has steps.

    begin, end: of that part, 0 to 1.
    """

    moves: int
    begin: float
    end: float

    def due(self, at: Progress) -> float | None:
        """The part of all moves that is made with the one after this step; None: there is none."""
        first = int(self.begin * at.steps)
        steps = max(int(self.end * at.steps) - first, 1)
        moves = min(self.moves, steps)
        done, left = divmod(at.step + 1 - first, steps // moves)
        return done / moves if 0 < done <= moves and not left else None


class SparseRows(StoredRows, Trains):
    """Rows [rows, width] of chunks, of which training chooses the live ones.

    It costs to drop a chunk what `fill` was told of errors in its row and in its columns. Once
    trained rows were frozen, the mask stays.

    Args:
        kind: says how many chunks live in the end.
        schedule: of the mask's moves.
    """

    kind: Chunked
    schedule: Schedule | None
    row_weights: Tensor | None  # [rows], while thawed,
    column_weights: Tensor | None  # and [width]
    weighs = True

    def __init__(self, rows: int, width: int, kind: Chunked, schedule: Schedule):
        super().__init__(rows, width, kind)
        self.schedule = schedule
        for name in ("row_weights", "column_weights"):
            self.register_buffer(name, None)

    def choose(self, values: Tensor, alive: Tensor) -> None:
        """Let these chunks live [rows, chunks] of what was filled in. Raises CannotStore."""
        self._take(self.kind.filled(values, alive))

    def thaw(self, grid: bool = True) -> None:
        super().thaw(grid)
        self.row_weights, self.column_weights = self._fitted_by

    def freeze(self) -> None:
        """Store what was trained; a mask that did not come to its end is brought there before."""
        if self.master is not None:
            if not self.settled:
                self._take_mask(self._costliest(self.kind.live))
            self.schedule = None
        super().freeze()
        self.row_weights = self.column_weights = None

    @property
    def alive(self) -> Tensor:
        """Which chunks live, bool [rows, chunks]."""
        return self.kind.alive(self.state, self.width)

    @property
    def settled(self) -> bool:
        """Whether as many chunks live as are served, and are read as they will be stored."""
        return super().settled and int(self.alive.sum()) == self.kind.live

    @torch.no_grad()
    def _begin_to_round(self) -> None:
        """The mask stays."""
        assert self.rounds is not None
        self._take_mask(self.alive)
        self.rounds.fill_(True)

    @torch.no_grad()
    def after_step(self, at: Progress) -> list[Moved]:
        if self.master is None:
            return []
        self._after_look_up(*self._looked_up())
        done = None if self.schedule is None else self.schedule.due(at)
        if done is None:
            return []
        before = self.alive
        self._take_mask(self._moved(done))
        return [Moved(self.master, numbers=spread(before != self.alive, self.width))]

    def after_epoch(self, at: Progress) -> list[Moved]:
        """Let a grid reach as far as the numbers do by now."""
        if self.master is not None:
            self._take_mask(self.alive)
        return super().after_epoch(at)

    def _looked_up(self) -> tuple[Tensor, Tensor]:
        """Rows [n] that the step reached, each once, and their gradients [n, width]."""
        assert self.master is not None
        gradient = self.master.grad
        if gradient is None:
            return torch.arange(0), self.master[:0]
        if not gradient.is_sparse:
            return torch.arange(self.rows), gradient
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()

    def _after_look_up(self, ids: Tensor, gradients: Tensor) -> None:
        """Set what the step moved in dead chunks back to zero."""
        assert self.master is not None
        alive = spread(self.kind.alive(self.state, self.width, ids), self.width)
        self.master.index_copy_(0, ids, self.master.index_select(0, ids) * alive)

    def _moved(self, done: float) -> Tensor:
        """The mask [rows, chunks] after a move.

        Args:
            done: the part of all moves that is made with it.
        """
        raise NotImplementedError

    def _costliest(self, number: int, sign: int = 1) -> Tensor:
        """So many of the live chunks, bool [rows, chunks]: those that it costs the most to drop.

        Args:
            sign: -1: the least.
        """
        assert self.master is not None
        found = sign * costs(self.master.detach(), self.row_weights, self.column_weights)
        return most(found.masked_fill(~self.alive, -torch.inf), number)

    @torch.no_grad()
    def _take_mask(self, alive: Tensor) -> None:
        """Let these chunks live [rows, chunks]; what comes to life begins with zeros."""
        assert self.master is not None
        self.master.mul_(spread(self.alive & alive, self.width))
        self._take(self.kind.marked(self.master.detach(), alive))


class GraduallyPruned(SparseRows):
    """Rows whose chunks all live when a run begins, and die until as many are left as are served.

    Before the first step the mask is the one that was filled in.

    Source: To prune or not to prune (arXiv 1710.01878).
    """

    @torch.no_grad()
    def before_step(self, at: Progress) -> None:
        super().before_step(at)
        if self.master is not None and self.schedule is not None and not at.step:
            self._take(self.kind.marked(self.master, torch.ones_like(self.alive)))

    def _moved(self, done: float) -> Tensor:
        alive = self.alive
        number = round(cubic(done, alive.numel(), self.kind.live))
        return self._costliest(min(number, int(alive.sum())))


def cubic(done: float, first: float, last: float) -> float:
    """What goes from `first` to `last` fast at first and slower and slower (arXiv 1710.01878)."""
    return last + (first - last) * (1 - done) ** 3


class DynamicallySparse(SparseRows):
    """Rows of which as many chunks live from the first step on as are served.

    With each move some of the live ones die, and as many others come to life, where the gradients
    of the steps since the last move would move most.

    Source: DSL (arXiv 2402.02855). There, live numbers are as many only in expectation, ties drop
    more of them, and one step's gradients say what grows.

    Args:
        fraction: of the live chunks that a move could replace at the begin of its schedule; it
            falls to 0 as a cosine does.
    """

    wanted: Tensor | None  # [rows, chunks], sums of magnitudes of gradients; while thawed

    def __init__(self, rows: int, width: int, kind: Chunked, schedule: Schedule, fraction: float):
        super().__init__(rows, width, kind, schedule)
        self.fraction = fraction
        self.register_buffer("wanted", None)

    def thaw(self, grid: bool = True) -> None:
        thawed = self.thawed
        super().thaw(grid)
        if not thawed:
            self._take_mask(self.alive)
            self.wanted = torch.zeros(self.alive.shape, device=self.device)

    def freeze(self) -> None:
        super().freeze()
        self.wanted = None

    def _after_look_up(self, ids: Tensor, gradients: Tensor) -> None:
        super()._after_look_up(ids, gradients)
        assert self.wanted is not None
        self.wanted.index_add_(0, ids, cut(gradients).abs().sum(2))

    def _moved(self, done: float) -> Tensor:
        assert self.wanted is not None
        alive = self.alive
        wanted = self.wanted.masked_fill(alive, 0)
        number = int(replaced(done, self.fraction) * self.kind.live)
        number = min(number, int((wanted > 0).sum()))
        self.wanted.zero_()
        return alive & ~self._costliest(number, -1) | most(wanted, number)


def replaced(done: float, fraction: float) -> float:
    """The part of live chunks that a move replaces, of `fraction` at first and none at last."""
    return fraction / 2 * (1 + math.cos(math.pi * done))
