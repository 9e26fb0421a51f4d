"""Roundings that gradients pass through, and grids that move while they are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LEAST = 1 / 8  # of the scale that a column began with: training goes no lower


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


def sloped(read: Tensor, line: Tensor) -> Tensor:
    """`read` bit for bit, with the gradient of `line` beside its own."""
    return read + (line - line.detach())


def fake_quantised(values: Tensor, scale: Tensor, offset: Tensor, levels: Tensor) -> Tensor:
    """Values [n, width] after rounding to the nearest of offset + scale * (0, 1, ..., levels).

    A value within the range passes its gradient on, one beyond it passes it to the offset. With
    u = (value - offset) / scale, the scale gets round(u) - u of it within the range, and beyond it
    the code, 0 or `levels`. There is no factor for the gradient of scales, since they are moved by
    Adam, which no factor changes, in units of their own (`moved_columns`). On a grid that takes no
    gradient values beyond the range pass theirs on too, since nothing else can come nearer.

    Source: LSQ+ (arXiv 2004.09576).

    Args:
        scale, offset, levels: of a shape that broadcasts to that of the values.
    """
    with torch.no_grad():
        u = (values - offset) / scale
        codes = torch.minimum(u.round().clamp_min_(0), levels)
        read = codes * scale + offset
        inside = (u >= 0) & (u <= levels)
        slope = codes - u.where(inside, 0.0)
    if not scale.requires_grad:
        return sloped(read, values)
    return sloped(read, values.where(inside, offset) + slope * scale)


def moved_columns(grid: Tensor, by: Tensor) -> Tensor:
    """A grid [..., 2 or more, width] of columns after its scales and offsets were moved.

    float32, but each number is one of the grid's type, so that it is stored without a change; the
    gradient passes through this rounding. What lies below scales and offsets stays.

    Args:
        by: in scales of the column, or in mean ones where the column has no code.
    """
    scale, offset, *rest = grid.float().unbind(-2)
    unit = _units(scale, *rest[:1])
    moved = torch.stack([scale + unit * by[..., 0, :], offset + unit * by[..., 1, :]], -2)
    least = torch.stack([LEAST * scale, torch.full_like(offset, -torch.inf)], -2)
    stored = straight_through(lambda m: torch.maximum(m, least).to(grid.dtype).float(), moved)
    return torch.cat([stored, grid[..., 2:, :].float()], -2)


def _units(scale: Tensor, bits: Tensor | None = None) -> Tensor:
    """How far training moves the numbers of a column by 1 [..., width]."""
    if bits is None:
        return scale
    coded = bits != 0
    mean = scale[coded].mean() if coded.any() else scale.new_zeros(())
    return scale.where(coded, mean)


def moved_words(words: Tensor, by: Tensor) -> Tensor:
    """Codewords [n, ...] after they were moved by so many root mean squares of all of them.

    float32, but each number is one of the words' type, as in `moved_columns`.
    """
    unit = words.float().square().mean(0).sqrt()
    return straight_through(lambda m: m.to(words.dtype).float(), words.float() + unit * by)
