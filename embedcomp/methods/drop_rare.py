"""Rows that are looked up often, and one row for all others.

What is dropped is replaced by its mean, weighted by counts (the codebook of Shaver, arXiv
2411.13052), or by zero. Where rows lie in order of count, the rare ones are a tail and need no
index; elsewhere it takes 0.14 bytes an id.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from embedcomp.methods.parts import fewer_rows
from embedcomp.methods.parts.fewer_rows import FewerRows
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.index import IndexForm


@dataclass(frozen=True, kw_only=True)
class Settings(FewerRows):
    index: IndexForm = "ranked"  # "cut" where rows lie in order of count


def candidates(spec: Spec) -> list[Settings]:
    form: IndexForm = "cut" if isinstance(spec, TableSpec) and spec.by_count else "ranked"
    return [replace(settings, index=form) for settings in fewer_rows.candidates(spec, Settings)]


def empty(spec: Spec, settings: Settings) -> Served:
    return fewer_rows.empty(spec, settings.index, settings)


def compress(layer: Layer, settings: Settings) -> Served:
    chosen_by = settings.share, settings.index
    return fewer_rows.compress(layer, settings.index, settings, _places, *chosen_by)


def _places(layer: Layer, share: float, index: IndexForm) -> Tensor:
    """The stored row that each id reads, int64 [rows]."""
    if index == "cut" or layer.own_counts is None:
        order = torch.arange(len(layer.weight))
    else:
        order = torch.argsort(layer.own_counts, descending=True, stable=True)
    return fewer_rows.first(layer, order, share)
