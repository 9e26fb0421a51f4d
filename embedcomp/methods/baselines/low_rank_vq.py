"""Vector quantization in a low-rank space (LR2VQ): few columns, then few codes for them.

Source: arXiv 2211.11397, whose low-rank space is learnt; here it is low_rank's, which loses the
least of the loss for its rank, turned as for optimized product quantization. A row takes parts *
bits / 8 bytes; the rank only decides how large the codebook and the decoder are.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import Weighting
from embedcomp.methods.parts.rotation import fill_rotated
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.names import ProductBits


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int  # columns that are quantized
    parts: int  # groups of them, a code of a row each
    bits: ProductBits = 8  # of a code
    weighting: Weighting = "loss"


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec):
        return []
    found = [
        Settings(rank=rank, parts=parts, bits=bits)
        for parts, bits in build.code_sizes(spec.dim - 1)
        for rank in (parts, 2 * parts, 4 * parts)
        if rank < spec.dim and (rank > parts or bits == 4)  # 8 bits a column are no less than int8
    ]
    return build.paying(spec, found, empty)


def empty(spec: Spec, settings: Settings) -> Served:
    storage = build.product_codes(spec, settings.rank, settings.parts, settings.bits)
    return build.low_rank(spec, settings.rank, storage)


def compress(layer: Layer, settings: Settings) -> Served:
    served = empty(layer.spec, settings)
    fill_rotated(served, layer, settings.weighting)
    return served
