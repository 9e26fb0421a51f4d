"""Rows that a batch looks up, each about once: what workers send each other."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearly distinct row numbers [U] that hold all of `ids` [n], and where each of these is [n].

    Every id writes its position into a table of about 3 n seats, at its own number modulo these,
    and the last one there stands for all that are equal to it. What met another id comes as often
    as it was looked up. So there is no sort, which takes twice as long, and no memory as for a
    number a row of the tables. One thread writes, so that equal ids give equal answers.
    """
    positions = torch.arange(len(ids))
    seats = 1 << (2 * len(ids)).bit_length()
    seat = ids.remainder(seats)
    last = ids.new_empty(seats).scatter_(0, seat, positions).index_select(0, seat)
    stands = torch.where(ids.index_select(0, last) == ids, last, positions)
    kept = stands == positions
    return ids.masked_select(kept), (kept.cumsum(0) - 1).index_select(0, stands)


def summed(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Nearly distinct row numbers [U] of a sparse gradient, and the sum of each one's [U, width].

    Sums are in the order of the look-ups.
    """
    ids, places = distinct(gradient._indices()[0])
    values = gradient._values()
    return ids, values.new_zeros(len(ids), values.shape[1]).index_add_(0, places, values)
