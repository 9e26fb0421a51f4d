"""Product quantization: a few codes a row, each for a group of columns.

Source: Jegou et al., PAMI 2011, weighted by counts; the rotation is that of optimized product
quantization (compress/rotation.py). Without a rotation the rows themselves are quantized, and an
error counts by its column's own share of the loss; with one, the rotated rows are, in units of the
loss, and an affine decoder [dim, dim] turns them back.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import Weighting
from embedcomp.methods.parts.rotation import fill_rotated
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.names import ProductBits


@dataclass(frozen=True, kw_only=True)
class Settings:
    parts: int  # groups of columns, a code of a row each
    bits: ProductBits = 8  # of a code
    rotation: bool = False  # turn the columns first; takes a decoder
    weighting: Weighting = "loss"


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec):
        return []  # a codebook as wide as the inputs is as large as the weight
    plain = [Settings(parts=parts, bits=bits) for parts, bits in build.code_sizes(spec.dim)]
    turned = [
        Settings(parts=parts, bits=bits, rotation=True)
        for parts, bits in build.code_sizes(spec.dim)
        if 1 < parts < spec.dim  # turning one group, or single columns, brings nothing
    ]
    return build.paying(spec, plain + turned, empty)


def empty(spec: Spec, settings: Settings) -> Served:
    assert isinstance(spec, TableSpec)
    storage = build.product_codes(spec, spec.dim, settings.parts, settings.bits)
    if settings.rotation:
        return build.low_rank(spec, spec.dim, storage)
    return build.plain(spec, storage)


def compress(layer: Layer, settings: Settings) -> Served:
    served = empty(layer.spec, settings)
    assert isinstance(served, CompressedTable)
    if settings.rotation:
        fill_rotated(served, layer, settings.weighting)
    else:
        gradient = layer.gradient if settings.weighting == "loss" else None
        columns = None if gradient is None else gradient.diagonal()
        served.fill(layer.weight, layer.counts, columns)
    return served
