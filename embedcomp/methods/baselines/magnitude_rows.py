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
from embedcomp.methods.parts.fewer_rows import FewerRows
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.sensitivity.loss import row_errors


@dataclass(frozen=True, kw_only=True)
class Settings(FewerRows):
    weighting: Literal["loss", "magnitude"] = "loss"


def candidates(spec: Spec) -> list[Settings]:
    found = fewer_rows.candidates(spec, Settings)
    plain = [s for s in found if s.rank is None and s.storage == "float16"]
    return found + [replace(settings, weighting="magnitude") for settings in plain]


def empty(spec: Spec, settings: Settings) -> Served:
    return fewer_rows.empty(spec, "map", settings)


def compress(layer: Layer, settings: Settings) -> Served:
    key = f"magnitude_rows {settings.weighting} {settings.share} {settings.dropped}"
    return fewer_rows.compress(
        layer,
        "map",
        settings,
        key,
        lambda: fewer_rows.first(layer, _order(layer, settings), settings.share),
    )


def _order(layer: Layer, settings: Settings) -> Tensor:
    off = layer.weight
    if settings.dropped == "mean":
        off = off - layer_moments(layer)[0].float()
    sizes = row_errors(off, layer.gradient if settings.weighting == "loss" else None)
    if settings.weighting == "loss" and layer.own_counts is not None:
        sizes = sizes * layer.own_counts
    return torch.argsort(sizes, descending=True, stable=True)
