"""The largest rows, and one row for all others: magnitude pruning of whole rows.

A row is as large as what it costs to drop it: its distance from the row that would stand for it,
or, weighted by "loss", the squared distance in the metric of the loss times how often it is looked
up, which is the exact expected cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from embedcomp.methods.parts import fewer_rows
from embedcomp.methods.parts.factors import layer_moments
from embedcomp.methods.parts.fewer_rows import Dropped, FewerRows
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.sensitivity.loss import row_errors

Weighting = Literal["loss", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class Settings(FewerRows):
    weighting: Weighting = "loss"


def candidates(spec: Spec) -> list[Settings]:
    found = fewer_rows.candidates(spec, Settings)
    plain = [s for s in found if s.rank is None and s.storage == "float16"]
    return found + [replace(settings, weighting="magnitude") for settings in plain]


def empty(spec: Spec, settings: Settings) -> Served:
    return fewer_rows.empty(spec, "ranked", settings)


def compress(layer: Layer, settings: Settings) -> Served:
    chosen_by = settings.share, settings.weighting, settings.dropped
    return fewer_rows.compress(layer, "ranked", settings, _places, *chosen_by)


def _places(layer: Layer, share: float, weighting: Weighting, dropped: Dropped) -> Tensor:
    """The stored row that each id reads, int64 [rows]."""
    off = layer.weight
    if dropped == "mean":
        off = off - layer_moments(layer)[0].float()
    sizes = row_errors(off, layer.gradient if weighting == "loss" else None)
    if weighting == "loss" and layer.own_counts is not None:
        sizes = sizes * layer.own_counts
    return fewer_rows.first(layer, torch.argsort(sizes, descending=True, stable=True), share)
