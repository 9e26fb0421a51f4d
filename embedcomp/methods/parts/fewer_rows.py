"""Tables with fewer rows: rows kept x columns kept x storage, whatever chooses the rows.

A method says which stored row each id reads. What is stored is then a table by itself, each row the
mean, weighted by counts, of the rows that it stands for: kept in full or in low rank, and in any
storage.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import mimic_table
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    Spec,
    TableSpec,
    TableStatistics,
)
from embedcomp.storage.index import Cut, Index, IndexForm, Map, Ranked
from embedcomp.storage.names import FactorStorage

SHARES = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)  # of a table's rows, worth trying
FEWEST = 8  # rows that are worth keeping
RANKS = (None, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # coarse, since rows are chosen as well


Dropped = Literal["mean", "zero"]


@dataclass(frozen=True, kw_only=True)
class FewerRows:
    """Settings of a method that stores fewer rows than a table has."""

    share: float  # of the rows that is stored
    rank: int | None = None  # of the stored rows; None: their columns as they are
    storage: FactorStorage = "float16"
    dropped: Dropped = "mean"  # what stands for rows that are dropped: the mean of
    # those that are looked up, weighted by counts, or nothing


Settings = TypeVar("Settings", bound=FewerRows)


def candidates(spec: Spec, kind: type[Settings]) -> list[Settings]:
    """Shares x ranks x storages worth trying on a table."""
    if not isinstance(spec, TableSpec):
        return []
    return [
        kind(share=share, rank=rank, storage=storage)
        for share in SHARES
        if share * spec.rows >= FEWEST
        for rank in RANKS
        if rank is None or rank < spec.dim
        for storage in build.FEW_STORAGES
    ]


def kept(rows: int, share: float) -> int:
    """Rows that a share is: at least 1."""
    return min(max(round(share * rows), 1), rows)


def empty(
    spec: Spec, form: IndexForm, settings: FewerRows, stored: int | None = None
) -> CompressedTable:
    """The table, without numbers.

    Args:
        stored: rows; None: the settings' share, and one for all that is dropped.
    """
    assert isinstance(spec, TableSpec)
    stored = kept(spec.rows, settings.share) + 1 if stored is None else stored
    rank, storage = settings.rank, settings.storage
    fewer = replace(spec, rows=stored, padding_idx=None)
    inside = build.plain(fewer, storage) if rank is None else build.low_rank(fewer, rank, storage)
    assert isinstance(inside, CompressedTable)
    return build.table(spec, inside.stored, inside.decode, _index(form, spec.rows, stored))


def _index(form: IndexForm, rows: int, stored: int) -> Index:
    if form == "cut":
        return Cut(stored)
    return Map(rows, stored) if form == "map" else Ranked(rows, stored, tiers=2)


def compress(
    layer: Layer,
    form: IndexForm,
    settings: FewerRows,
    places: Callable[..., Tensor],
    *chosen_by: Hashable,
) -> CompressedTable:
    """The table, filled.

    Args:
        places: makes of the layer and `chosen_by`, int64 [rows], which stored row each id reads.
    """
    read = layer.shared(places, *chosen_by)
    stored = int(read.max()) + 1 if layer.stands_for is not None else None
    served = empty(layer.spec, form, settings, stored)
    if isinstance(served.index, Map):
        served.index.fill(read)
    elif isinstance(served.index, Ranked):
        served.index.fill((read == served.stored.rows - 1).long())
    zero = settings.dropped == "zero"
    fewer = layer.shared(_stored_rows, places, chosen_by, served.stored.rows, zero).within(layer)
    assert isinstance(fewer.spec, TableSpec)
    if settings.rank is None:
        served.fill(fewer.weight, fewer.counts)
    else:
        inside = build.table(fewer.spec, served.stored, served.decode)
        mimic_table(inside, fewer, settings.rank, "loss")
    return served


def _stored_rows(
    layer: Layer,
    places: Callable[..., Tensor],
    chosen_by: tuple[Hashable, ...],
    stored: int,
    last_is_zero: bool,
) -> Layer:
    return merged(layer, layer.shared(places, *chosen_by), stored, last_is_zero)


def merged(layer: Layer, places: Tensor, stored: int, last_is_zero: bool) -> Layer:
    """The table of stored rows, with the counts of all that they stand for."""
    assert isinstance(layer.spec, TableSpec)
    counts = torch.ones(len(places)).double() if layer.counts is None else layer.counts
    weights = counts + counts.mean() * 1e-9  # so that rows never looked up have a mean as well
    total = torch.zeros(stored).double().index_add_(0, places, weights)
    rows = torch.zeros(stored, layer.weight.shape[1]).double()
    rows.index_add_(0, places, layer.weight.double() * weights[:, None])
    weight = (rows / total.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).float()
    if last_is_zero:
        weight[-1] = 0
    spec = replace(layer.spec, rows=stored, padding_idx=None)
    return Layer(spec, weight, None, TableStatistics(total, layer.gradient))


def first(layer: Layer, order: Tensor, share: float) -> Tensor:
    """Places of rows of which the first of an order are kept; others read the row after them.

    Args:
        order: int64 [rows], beginning with the row that matters most.
    """
    stands_for = layer.stands_for
    if stands_for is None:
        number = kept(len(order), share)
    else:  # a number of the sample's rows that stands for the share
        covered = stands_for[order].cumsum(0)
        number = max(int((covered <= share * stands_for.sum()).sum()), 1)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:number]] = True
    return torch.where(chosen, chosen.cumsum(0) - 1, number)
