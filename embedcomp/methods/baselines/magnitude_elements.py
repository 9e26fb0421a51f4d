"""The largest elements of a matrix, in compressed sparse rows: magnitude pruning.

An element of a table is as large as its distance from the mean row, weighted by counts, whose
columns stand for what is dropped (arXiv 2411.13052); an element of a linear layer is as large as it
is, and the bias makes up for the mean of what is dropped. An element takes an fp16 value and its
column, and every row 4 bytes for where its elements begin, all of which counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import layer_moments
from embedcomp.modules.linear import CompressedLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.decode import Scatter
from embedcomp.storage.kinds.csr import Csr
from embedcomp.storage.rows import StoredRows

DENSITIES = (0.5, 0.25, 0.15, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True, kw_only=True)
class Settings:
    density: float  # share of the elements that is kept
    dropped: Literal["mean", "zero"] = "mean"  # what stands for elements that are dropped


def candidates(spec: Spec) -> list[Settings]:
    return [Settings(density=density) for density in DENSITIES]


def empty(spec: Spec, settings: Settings) -> Served:
    if isinstance(spec, LinearSpec):
        nonzeros = round(settings.density * spec.outputs * spec.inputs)
        bias = build.of_bias(spec.outputs, spec.bias, "float16")
        return CompressedLinear(spec.inputs, spec.outputs, bias, Csr(nonzeros))
    nonzeros = round(settings.density * spec.rows * spec.dim)
    stored = StoredRows(spec.rows, spec.dim, Csr(nonzeros))
    zero = settings.dropped == "zero"
    return build.table(spec, stored, None if zero else Scatter(spec.dim, spec.dim, "float16"))


def compress(layer: Layer, settings: Settings) -> Served:
    served = empty(layer.spec, _of_sample(layer, settings))
    if isinstance(served, CompressedLinear):
        served.stored.fill(layer.weight)
        if settings.dropped == "mean":
            build.keep_mean(served, layer)
        elif layer.bias is not None:
            served.set_bias(layer.bias)
        return served
    assert isinstance(served, CompressedTable)
    if served.decode is None:
        served.fill(layer.weight)
        return served
    assert isinstance(served.decode, Scatter)
    served.decode.fill(torch.arange(served.dim), layer_moments(layer)[0])
    served.fill(layer.weight - served.decode.shift())
    return served


def _of_sample(layer: Layer, settings: Settings) -> Settings:
    """The density that a sample of rows has where the whole table has the settings'.

    A sample holds more of the rows that are looked up often, whose elements are larger.
    """
    if layer.stands_for is None or not isinstance(layer.spec, TableSpec):
        return settings
    off = layer.weight
    if settings.dropped == "mean":
        off = off - layer_moments(layer)[0].float()
    sizes, order = off.abs().reshape(-1).sort(descending=True)
    covered = layer.stands_for[order // off.shape[1]].cumsum(0)
    number = int((covered <= settings.density * covered[-1]).sum())
    return replace(settings, density=number / len(sizes))
