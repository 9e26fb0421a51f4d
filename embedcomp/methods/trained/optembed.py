"""Rows and columns of each table that a search finds while the model trains: OptEmbed.

Source: arXiv 2208.04482. First a supernet is trained: a row lives while it is larger than a
threshold of its table, which is learnt, and bags are read in widths that are drawn
(storage/row_search.py). Then evolution finds a width for each table, by the validation AUC of the
supernet that is cut to it. Then the form is trained, with what was found.

Other than in the paper, there are bytes to keep to, so evolution also says how many of the largest
rows stay of those that live, and begins with the plan's sizes. What is dropped may be the mean row
(Shaver, arXiv 2411.13052). Columns stay in the order of what they are worth in the model that the
search began with; the paper's begins with drawn numbers, where they are worth the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build, fewer_rows
from embedcomp.methods.parts.evolution import Candidate, Evolution
from embedcomp.methods.parts.factors import layer_moments
from embedcomp.methods.parts.fewer_rows import SHARES, Dropped
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    Room,
    SearchedTable,
    Searches,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.decode import Decoder, Scatter
from embedcomp.storage.index import Ranked
from embedcomp.storage.names import FactorStorage
from embedcomp.storage.row_search import DrawnWidths, ThresholdedRows
from embedcomp.storage.rows import StoredRows

COLUMNS = (1, 2, 4, 8, 16, 32)  # coarse, since rows are chosen as well, and the search refines them
STORAGES: tuple[FactorStorage, ...] = ("float16", "column_int8")


@dataclass(frozen=True, kw_only=True)
class Settings(Searches):
    """The size of a table, and how its search goes."""

    begins_far = True  # rows and columns fall out of it, and the others take their part
    share: float  # of the rows that is kept, the largest ones
    columns: int  # that are kept
    storage: FactorStorage = "float16"
    dropped: Dropped = "mean"  # what stands for what is dropped, to begin with: the mean of the
    # rows that are looked up, weighted by counts, or nothing
    price: float = 1e-4  # of a threshold, times exp(-threshold), in log loss
    threshold_rate: float = 1.0  # of its steps, times the learning rate


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec):
        return []
    return [
        Settings(share=share, columns=columns, storage=storage)
        for storage in STORAGES
        for share in (1.0, *SHARES)
        if share == 1 or share * spec.rows >= fewer_rows.FEWEST
        for columns in (*(c for c in COLUMNS if c < spec.dim), spec.dim)
        if share < 1 or columns < spec.dim
    ]


def empty(spec: Spec, settings: Settings) -> Served:
    return _empty(spec, settings)


def compress(layer: Layer, settings: Settings) -> Served:
    """The table, filled with its largest rows, or with those that a search found to be."""
    served = _empty(layer.spec, settings)
    base, stored = _base(layer, settings), layer.weight
    counts = torch.ones(len(stored)).double() if layer.counts is None else layer.counts
    if isinstance(served.index, Ranked):
        kept = _order(layer, base)[: served.stored.rows - 1].sort().values
        dropped = torch.ones(len(stored), dtype=torch.long).index_fill_(0, kept, 0)
        served.index.fill(dropped)
        stored = torch.cat([stored[kept], base[None]])
        counts = torch.cat([counts[kept], (counts * dropped).sum()[None]])
    weights = None if layer.gradient is None else layer.gradient.diagonal()
    if isinstance(served.decode, Scatter):
        columns = _columns(layer, settings)[: settings.columns].sort().values
        served.decode.fill(columns, base)
        stored = (stored - served.decode.shift())[:, columns]
        weights = None if weights is None else weights[columns]
    served.fill(stored.contiguous(), counts, weights)
    return served


def searching(layer: Layer, settings: Settings) -> CompressedTable:
    """The table in the supernet, with all of its rows."""
    assert isinstance(layer.spec, TableSpec)
    base = _base(layer, settings)
    stored = ThresholdedRows(layer.spec.rows, base, settings.price, settings.threshold_rate)
    stored.fill(layer.weight)
    salt = crc32(layer.spec.name.encode()) >> 1
    widths = DrawnWidths(_columns(layer, settings), base, salt)
    return build.table(layer.spec, stored, cast(Decoder, widths))  # it stands where one would


def settle(tables: Mapping[str, SearchedTable], room: Room) -> dict[str, Settings]:
    """The sizes of all tables with which the supernet has the best score."""
    options = {name: _options(table) for name, table in tables.items()}

    def chosen(candidate: Candidate) -> dict[str, Settings]:
        return {name: options[name][gene] for name, gene in zip(options, candidate, strict=True)}

    def fitness(candidate: Candidate) -> float:
        for name, settings in chosen(candidate).items():
            cut(tables[name], settings)
        return room.score()

    found = Evolution(
        sizes=[len(of_table) for of_table in options.values()],
        fitness=fitness,
        cost=lambda candidate: room.bytes_of(chosen(candidate)),
        most=room.most,
        random=np.random.default_rng(room.seed),
    ).best(_start(tables, options), room.watch)
    best = chosen(found.candidate)
    for name, settings in best.items():
        cut(tables[name], settings)
    return best


def cut(table: SearchedTable, settings: Settings) -> None:
    """Let a table of the supernet read what it would have with these settings."""
    stored, widths = _supernet(table.module)
    stored.keep(fewer_rows.kept(stored.rows, settings.share))
    widths.width = settings.columns


def _options(table: SearchedTable) -> list[Settings]:
    """Sizes that a table can have, the smallest first: all widths, and shares of what lives."""
    spec, planned = table.layer.spec, table.settings
    assert isinstance(spec, TableSpec)
    rows = {max(round(share * _most(table)), 1) for share in (1.0, *SHARES)}
    rows.add(_planned_rows(table))
    widths = {columns for columns in build.ranks(spec) if columns} | {planned.columns}
    found = [
        replace(planned, share=number / spec.rows, columns=columns)
        for number in rows
        for columns in widths
    ]
    return sorted(found, key=lambda one: (one.share * one.columns, one.columns))


def _most(table: SearchedTable) -> int:
    """Rows that may stay: those that live."""
    return max(_supernet(table.module)[0].live, 1)


def _planned_rows(table: SearchedTable) -> int:
    return min(fewer_rows.kept(table.module.rows, table.settings.share), _most(table))


def _start(tables: Mapping[str, SearchedTable], options: Mapping[str, list[Settings]]) -> Candidate:
    """The sizes of the plan, of which only what lives is there."""
    return tuple(
        options[name].index(replace(table.settings, share=_planned_rows(table) / table.module.rows))
        for name, table in tables.items()
    )


def _supernet(module: CompressedTable) -> tuple[ThresholdedRows, DrawnWidths]:
    stored, widths = module.stored, cast(object, module.decode)
    assert isinstance(stored, ThresholdedRows) and isinstance(widths, DrawnWidths)
    return stored, widths


def _base(layer: Layer, settings: Settings) -> Tensor:
    """What stands for dropped rows and columns: [dim]."""
    if settings.dropped == "zero":
        return torch.zeros(layer.weight.shape[1])
    return layer_moments(layer)[0].float()


def _order(layer: Layer, base: Tensor) -> Tensor:
    """Rows int64 [rows], those that are kept longest first."""
    if layer.searched is not None:
        return _supernet(layer.searched)[0].order()
    sizes = (layer.weight - base).abs().sum(1)
    return torch.argsort(sizes, descending=True, stable=True)


def _columns(layer: Layer, settings: Settings) -> Tensor:
    """Columns int64 [dim], those that are kept longest first: by their variance and its weight."""
    if layer.searched is not None:
        return _supernet(layer.searched)[1].order
    if layer.drawn:
        return torch.arange(layer.weight.shape[1])
    mean, covariance = layer_moments(layer)
    sizes = covariance.diagonal() + (mean - _base(layer, settings)).square()
    if layer.gradient is not None:
        sizes = sizes * layer.gradient.diagonal()
    return torch.argsort(sizes, descending=True, stable=True)


def _empty(spec: Spec, settings: Settings) -> CompressedTable:
    assert isinstance(spec, TableSpec)
    if not (0 < settings.columns <= spec.dim and 0 < settings.share <= 1):
        raise BadSettings(
            f"{spec.name} has {spec.dim} columns, so {settings.columns} of them and a share of "
            f"{settings.share:g} of its rows cannot be kept"
        )
    rows, index, decode = fewer_rows.kept(spec.rows, settings.share), None, None
    if rows < spec.rows:
        index, rows = Ranked(spec.rows, rows + 1, tiers=2), rows + 1
    if settings.columns < spec.dim:
        decode = Scatter(settings.columns, spec.dim, build.of_decoder(settings.storage))
    return build.table(spec, StoredRows(rows, settings.columns, settings.storage), decode, index)
