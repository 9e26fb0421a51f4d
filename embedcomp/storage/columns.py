"""Columns of numbers, and the grids that their codes are rounded to.

A grid is a scale and an offset a column; one of columns that differ in bits says how many each has.
All that is fitted is fitted to each column by itself, so what is found for the columns of one layer
once serves every storage that keeps some of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BINS = 4096  # of a column's weighted histogram, to which its grid is fitted
MOST_BITS = 8  # of one column, where columns differ
FITTED_BITS = 4  # a bit more than these quarters the squared error
SHRINKS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.22, 0.15, 0.1, 0.06)  # of a column's range, tried
REFINEMENTS = 4
FITTED = 1 << 21  # numbers to which grids are fitted at a time
NO_SPREAD = float(np.finfo(np.float32).tiny)  # scale of a column of one value


class Columns:
    """Columns to be stored, and what was found out about each of them.

    Args:
        values: float32 [n, width].
        weights: [n], how much a squared error in a row matters; None: all the same.
    """

    def __init__(self, values: Tensor, weights: Tensor | None = None):
        self.values, self.weights = values, weights
        self._all = self
        self._known: dict[Hashable, Tensor] = {}
        self._parts: dict[tuple[int, ...], list[Columns]] = {}

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def first(self, width: int) -> Columns:
        """The first ones of the columns; what is found out about them is found out about all."""
        some = Columns(self.values[:, :width], self.weights)
        some._all = self._all
        return some

    def split(self, lengths: Sequence[int]) -> list[Columns]:
        """The columns in parts of these numbers of rows."""
        parts, key = self._all._parts, tuple(lengths)
        if key not in parts:
            rows = self._all.values.split(key)
            weights = [None] * len(rows) if self.weights is None else self.weights.split(key)
            parts[key] = [Columns(*part) for part in zip(rows, weights, strict=True)]
        return parts[key] if self._all is self else [p.first(self.width) for p in parts[key]]

    def known(self, what: Hashable, find: Callable[[Columns], Tensor]) -> Tensor:
        """What `find` says of each column by itself [..., width], asked once for all of them."""
        known = self._all._known
        if what not in known:
            known[what] = find(self._all)
        return known[what][..., : self.width]

    def errors(self) -> Tensor:
        """Weighted squared error [MOST_BITS + 1, width] of each column with 0, 1, 2, ... bits."""
        return self.known("errors", lambda columns: _code_errors(*_histogram(columns, BINS // 4)))

    def grid(self, levels: int) -> Tensor:
        """Scales and offsets [2, width] for codes from 0 to `levels`."""
        return self.known(("grid", levels), lambda columns: fit_grid(*columns._binned(), levels))

    def fitted(self, bits: Tensor) -> Tensor:
        """The bfloat16 grid [3, width] of columns; one without bits is its mean."""
        mean = self.known("mean", lambda columns: _mean(*columns._binned()))
        constant = torch.stack([torch.ones_like(mean), mean]).bfloat16()
        grid = torch.where(bits > 0, shortened(self._grid_of(bits), levels(bits)), constant)
        return torch.cat([grid, bits[None].bfloat16()])

    def _grid_of(self, bits: Tensor) -> Tensor:
        """Scales and offsets [2, width] for codes of `bits` bits a column."""
        if self._all is self:  # who asks no second time
            return fit_grid(*self._binned(), levels(bits).clamp_min(1))
        grid = torch.ones(2, self.width)
        for number in sorted(set(bits.tolist()) - {0.0}):
            grid = torch.where(bits == number, self.grid((1 << int(number)) - 1), grid)
        return grid

    def _binned(self) -> tuple[Tensor, Tensor]:
        """Values and weights [n, width], or their histogram."""
        found = self.known("histogram", lambda columns: torch.stack(_histogram(columns, BINS)))
        return found[0], found[1]


def columns_of(values: Tensor | Columns, weights: Tensor | None) -> Columns:
    """Columns as they are, or made of values [n, width] and the weights [n] of their rows."""
    if isinstance(values, Columns):
        assert weights is None, "columns have weights already"
        return values
    return Columns(values.detach().float(), weights)


def levels(bits: Tensor) -> Tensor:
    """Steps between the lowest and the highest code of columns with `bits` bits."""
    return torch.exp2(bits) - 1


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of each column [width]."""
    return (values * weights).sum(0) / weights.sum(0)


def _code_errors(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted squared error [MOST_BITS + 1, width] of each column with 0, 1, 2, ... bits."""
    constant = ((values - _mean(values, weights)).square() * weights).sum(0)
    fitted = _errors_at(torch.arange(1, FITTED_BITS + 1), values, weights)
    more = [fitted[-1] / 4**bits for bits in range(1, MOST_BITS - FITTED_BITS + 1)]
    return torch.stack([constant, *fitted, *more])


def _errors_at(bits: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted squared errors [k, width] of the columns in each number of bits [k]."""
    values, weights = values.repeat(1, len(bits)), weights.repeat(1, len(bits))  # all at once
    steps = levels(bits).repeat_interleave(values.shape[1] // len(bits))
    grid = fit_grid(values, weights, steps, refinements=0)
    off = nearest_codes(values, grid, steps) * grid[0] + grid[1] - values
    return (off.square() * weights).sum(0).view(len(bits), -1)


def shortened(grid: Tensor, levels: int | Tensor) -> Tensor:
    """Scales and offsets [2, width] in bfloat16, which still reach as far down and up.

    A column whose spread is small beside its mean would else fall off its grid.
    """
    scale, offset = grid
    low = offset.bfloat16()
    low = torch.where(low.float() > offset, _next(low, -torch.inf), low)
    wanted = scale + (offset - low.float()) / torch.as_tensor(levels).clamp_min(1)
    step = wanted.bfloat16()
    return torch.stack([torch.where(step.float() < wanted, _next(step, torch.inf), step), low])


def _next(values: Tensor, towards: float) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, towards))


def shared_out(total: int, errors: Tensor, least: int) -> Tensor:
    """Bits of each column, float32 [width]: they go where they lower the error most.

    Args:
        total: bits of a row.
        errors: [MOST_BITS + 1, width], of each column with 0, 1, 2, ... bits.
        least: bits that every column has.
    """
    gains = (errors[least:-1] - errors[least + 1 :]).T.tolist()  # by column: of each further bit
    steps = [falling(column) for column in gains]
    bits, room = [least] * len(steps), total - least * len(steps)
    waiting = [(-found[0][0], column, 0) for column, found in enumerate(steps)]
    heapq.heapify(waiting)
    while waiting and room:
        _, column, place = heapq.heappop(waiting)
        size = steps[column][place][1]
        if size > room:
            continue  # a smaller step of another column may fit
        bits[column], room = bits[column] + size, room - size
        if place + 1 < len(steps[column]):
            heapq.heappush(waiting, (-steps[column][place + 1][0], column, place + 1))
    return torch.tensor(bits, dtype=torch.float32)


def falling(gains: Sequence[float]) -> list[tuple[float, int]]:
    """Gains of one bit after another as steps: the gain a bit, which never rises, and the bits.

    A bit that brings less than those after it, or nothing at all, is worth taking with them only.
    """
    steps: list[tuple[float, int]] = []
    for gain in gains:
        steps.append((gain, 1))
        while len(steps) > 1 and steps[-2][0] < steps[-1][0]:
            (after, more), (before, taken) = steps.pop(), steps.pop()
            steps.append(((before * taken + after * more) / (taken + more), taken + more))
    return steps


def nearest_codes(values: Tensor, grid: Tensor, levels: int | Tensor) -> Tensor:
    """The codes of a grid [2, width] nearest to values [n, width]."""
    return ((values - grid[1]) / grid[0]).round_().clamp_min_(0).clamp_max_(levels)


def _histogram(columns: Columns, most: int) -> tuple[Tensor, Tensor]:
    """Values [n, width] and their weights of the same shape; many become `most` bin centres."""
    weight, (n, width) = columns.values, columns.values.shape
    w = torch.ones(n) if columns.weights is None else columns.weights.float()
    if not w.any():
        w = torch.ones(n)
    weight, w = weight[w > 0], w[w > 0]
    if len(weight) <= most or not width:
        return weight, w[:, None].expand(weight.shape)
    low, high = weight.amin(0), weight.amax(0)
    step = ((high - low) / most).clamp_min(torch.finfo(torch.float32).tiny)
    bins = torch.zeros(width, most, dtype=torch.float64)
    for rows, mass in zip(
        torch.split(weight, 1 << 18), torch.split(w.double(), 1 << 18), strict=True
    ):
        places = ((rows - low) / step).long().clamp(0, most - 1)
        bins.scatter_add_(1, places.T, mass.expand(width, -1))
    centres = low + step * (torch.arange(most)[:, None] + 0.5)
    return centres, bins.T.float()


def fit_grid(
    values: Tensor, weights: Tensor, levels: int | Tensor, refinements: int = REFINEMENTS
) -> Tensor:
    """Scales and offsets [2, width] of small weighted squared error, each column by itself.

    Codes have heavy tails: rare ids barely move from zero, frequent ones are large. So several
    clipped ranges are tried, and the best one is refined by turns of rounding to the grid and
    fitting the grid to the rounded codes (least squares).

    Args:
        values: float32 [n, width].
        weights: of the same shape, at least one positive in a column.
        levels: steps between the lowest and the highest code, of all columns or of each [width].
    """
    if not values.numel():
        return torch.ones(2, values.shape[1])
    each = torch.as_tensor(levels).expand(values.shape[1])
    some = max(FITTED // len(values), 1)  # columns, so that what is tried of a wide matrix fits
    parts = zip(values.split(some, 1), weights.split(some, 1), each.split(some), strict=True)
    return torch.cat([_fitted(v, w, most, refinements) for v, w, most in parts], 1)


def _fitted(values: Tensor, weights: Tensor, levels: Tensor, refinements: int) -> Tensor:
    weights = weights / weights.sum(0)
    mean = (values * weights).sum(0)
    seen = torch.where(weights > 0, values, mean)
    low, high = seen.amin(0) - mean, seen.amax(0) - mean
    tried = torch.tensor(SHRINKS)[:, None]
    grids = _ranges(mean + tried * low, mean + tried * high, levels)  # [tried, 2, width]
    best = _best(grids, values, weights, levels)
    for _ in range(refinements):
        refined = _least_squares(nearest_codes(values, best, levels), values, weights, best)
        best = _best(torch.stack([refined, best]), values, weights, levels)
    return best


def _ranges(low: Tensor, high: Tensor, levels: int | Tensor) -> Tensor:
    """Grids [tried, 2, width] from the lowest to the highest values [tried, width]."""
    scale = (high - low) / levels
    return torch.stack([torch.where(scale > 0, scale, NO_SPREAD), low], 1)


def _best(grids: Tensor, values: Tensor, weights: Tensor, levels: int | Tensor) -> Tensor:
    """The best of several grids [tried, 2, width] for each column: [2, width]."""
    scale, offset = grids[:, 0, None], grids[:, 1, None]  # [tried, 1, width]
    off = ((values - offset) / scale).round_().clamp_min_(0).clamp_max_(levels)
    off = off.mul_(scale).add_(offset)
    error = off.sub_(values).square_().mul_(weights).sum(1)  # [tried, width]
    return grids.gather(0, error.argmin(0).expand(1, 2, -1))[0]


def _least_squares(codes: Tensor, values: Tensor, weights: Tensor, current: Tensor) -> Tensor:
    """The grid that maps these codes best onto the values."""
    code_mean, value_mean = (codes * weights).sum(0), (values * weights).sum(0)
    centred = (codes - code_mean) * weights
    variance = (centred * codes).sum(0)
    scale = (centred * values).sum(0) / variance
    scale = torch.where((variance > 0) & (scale > 0), scale, current[0])
    return torch.stack([scale, value_mean - scale * code_mean])
