"""Stored rows whose codes are found by the loss of the rows of the log that read them.

Source: PV-Tuning (arXiv 2405.14852), for rows of a table: words move by gradients while codes stay,
and codes are found anew after each epoch. The loss that rows of the log have as a function of a
row is taken to be quadratic around each of its look-ups, with the curvature that the table has on
average, so the code of least loss is the one nearest to a target, and ids do not depend on one
another.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from embedcomp.storage import kinds
from embedcomp.storage.kind import FP16_MAX, refuse_beyond
from embedcomp.storage.kinds.residual import Residual
from embedcomp.storage.names import AnyStorage
from embedcomp.storage.rounding import straight_through
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.training import Group, Moved, Progress, Trains

DAMPING = 1e-3  # of the mean curvature, that every direction has at least
STEP = 0.5  # of the way to a row's target: all tables go at once, each as if the others stayed


def stored_rows(rows: int, width: int, storage: AnyStorage) -> StoredRows:
    """Stored rows without numbers, which train as their kind asks for."""
    kind = kinds.named(storage) if isinstance(storage, str) else storage
    if isinstance(kind, Residual):
        return AssignedRows(rows, width, kind)
    return StoredRows(rows, width, kind)


class AssignedRows(StoredRows, Trains):
    """Rows [rows, width] of codes into codebooks, of which the codebooks train.

    Thawed, it holds the float32 parameter `words`, of the grid's shape, which is read as it will be
    stored; codes are in `stored` as ever. After an epoch every row takes the codes nearest to

        (sum of e + prior e_now - G^-1 sum of g) / (look-ups + prior),

    or rather to what lies half way there, in the metric G, where e is the row as a look-up read it,
    g the gradient of the loss of that row of the log, and G the mean curvature of a look-up
    (Gauss-Newton). That is the least of

        the sum over look-ups of g x + (x - e)^T G (x - e) / 2,
        and prior (x - e_now)^T G (x - e_now) / 2,

    so the codes that a row had are never better, and a rare row stays near what it was: the prior
    is so many look-ups as tell no more of a row than what rows deviate by anyway (`prior`).

    gradients, points: float32 [rows, width], sums of g and of e over the look-ups of an epoch.
    look_ups: float32 [rows], how many there were.
    curvature, squares: float32 [width, width], sums over them of what G is the mean of, and of
        g g^T.
    """

    kind: Residual
    words: nn.Parameter | None
    gradients: Tensor
    points: Tensor
    look_ups: Tensor
    curvature: Tensor
    squares: Tensor
    _rows = 0.0  # of the log, in the present step
    _squares: Tensor | None = None  # sum of g g^T of the present step

    def __init__(self, rows: int, width: int, kind: Residual):
        super().__init__(rows, width, kind)
        self.register_parameter("words", None)

    def draw(self, deviations: Tensor, generator: torch.Generator) -> None:
        """Take words that are drawn, so that rows deviate so [width], and any codes."""
        self._take(self.kind.drawn(deviations, generator))

    @property
    def thawed(self) -> bool:
        return self.words is not None

    @property
    def state(self) -> dict[str, Tensor]:
        """The kind's tensors, with codebooks as they are trained."""
        if self.words is None:
            return super().state
        return {**super().state, "grid": straight_through(_as_stored, self.words)}

    def gather(self, ids: Tensor) -> Tensor:
        """Rows float32 [n, width] of ids [n]; thawed, with a gradient of the codebooks."""
        rows = self.kind.read(self.state, self.width, ids)
        if self.training and rows.requires_grad:
            rows.register_hook(partial(self._see, ids, rows.detach()))
        return rows

    def to_float(self) -> Tensor:
        """The whole matrix, float32 [rows, width]; thawed, with a gradient of the codebooks."""
        return self.kind.read(self.state, self.width)

    def thaw(self, grid: bool = True) -> None:
        """Make the codebooks trainable: there is nothing else that could be."""
        if self.words is not None:
            return
        assert self.grid is not None
        self.words, self.unrounded = nn.Parameter(self.grid.float()), None
        width, device = self.width, self.device
        for name, shape in {
            "gradients": (self.rows, width),
            "points": (self.rows, width),
            "look_ups": (self.rows,),
            "curvature": (width, width),
            "squares": (width, width),
        }.items():
            self.register_buffer(name, torch.zeros(shape, device=device))
            self.summed = (*self.summed, name)

    def read_floats(self, until: float) -> None:
        """There are none: codes are found anew after each epoch, and words reach anywhere."""

    def freeze(self) -> None:
        """Store the codebooks that were trained; what is read does not change by a bit.

        Raises:
            CannotStore: training went beyond what 16-bit floats hold.
        """
        if self.words is None:
            return
        refuse_beyond(FP16_MAX, self.words, self.storage)
        self.grid, self.words = self.words.detach().half(), None
        for name in self.summed:
            delattr(self, name)
        self.summed = ()

    def groups(self) -> list[Group]:
        return [] if self.words is None else [Group((self.words,), "dense", l2=0.0)]

    def before_step(self, at: Progress) -> None:
        self._rows, self._squares = at.rows, None

    def _see(self, ids: Tensor, rows: Tensor, gradient: Tensor) -> None:
        """Add the look-ups of a step to the sums.

        Args:
            gradient: [n, width], of the mean loss of the step's rows of the log.
        """
        if not self._rows:
            return
        gradient = gradient * self._rows
        counts = gradient.any(1).float()  # padding is looked up for nothing
        self.gradients.index_add_(0, ids, gradient)
        self.points.index_add_(0, ids, rows * counts[:, None])
        self.look_ups.index_add_(0, ids, counts)
        squares = gradient.T @ gradient
        self._squares = squares if self._squares is None else self._squares + squares

    def after_step(self, at: Progress) -> list[Moved]:
        if self._squares is not None:
            self.curvature += at.curvature * self._squares
            self.squares += self._squares
        return []

    @torch.no_grad()
    def after_epoch(self, at: Progress) -> list[Moved]:
        """Find the codes anew, and begin new sums."""
        if self.words is not None:
            self.assign()
            for name in self.summed:
                getattr(self, name).zero_()
        return []

    @torch.no_grad()
    def assign(self) -> None:
        """Give every row the codes of least loss by the sums that there are."""
        root, inverse = self._roots()
        if root is None or inverse is None:
            return
        now, counts = self.to_float(), self.look_ups[:, None]
        pull = self.points - counts * now - self.gradients @ inverse
        prior = self.prior(pull, root, inverse)
        targets = now + STEP * pull / (counts + prior).clamp_min(1)
        state = self.state
        self.stored = self.kind.encode(targets, state["grid"], root, state["stored"])

    def prior(self, pull: Tensor, root: Tensor, inverse: Tensor) -> float:
        """Look-ups that what a row was counts as; infinite where all that is seen is noise.

        With S the mean of g g^T, noise alone moves a row of c look-ups by tr(G^-1 S) / c on average
        (squared, in the metric G). What rows move beyond it they were really off, tr(G D) each, and
        the best mean of both weighs what was by their ratio (empirical Bayes, by moments weighted
        by look-ups).

        Args:
            pull: [rows, width], look-ups times how far they would move a row by themselves.
        """
        counts = self.look_ups.double()
        noise = float((inverse.double() * self.squares.double()).sum() / counts.sum())
        lengths = (pull @ root).double().square().sum(1)
        spread = float((lengths / counts.clamp_min(1)).sum())
        off = (spread - noise * int((counts > 0).sum())) / float(counts.sum())
        return noise / off if off > 0 else math.inf

    def _roots(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """A root R [width, width] of G = R R^T, and G^-1; None where nothing was looked up."""
        total = self.look_ups.sum().double()
        mean = self.curvature.double() / total.clamp_min(1)
        if not mean.diagonal().sum() > 0:
            return None, None
        values, axes = torch.linalg.eigh(mean)
        values = values.clamp_min(DAMPING * mean.diagonal().mean())
        return (axes * values.sqrt()).float(), ((axes / values) @ axes.T).float()


def _as_stored(words: Tensor) -> Tensor:
    return words.half().float()
