"""A square linear layer as two block-diagonal matrices with transpositions between them.

Source: arXiv 2204.00595. Inputs and outputs are matrices [p, q]; the weight from input (i1, i2) to
output (o, k) becomes left[k, o, i1] right[i1, k, i2], so the p q matrices W[:, k, i1, :] are of
rank 1, and the closest such weight is their leading singular vectors: a closed form. p q (p + q)
numbers are left of p^2 q^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.modules.linear import MonarchLinear
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
)

FEWEST = 16  # inputs of a layer that is worth it

MonarchStorage = Literal["float32", "float16", "column_int8"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    blocks: int  # p, rows of the inputs as a matrix
    storage: MonarchStorage = "float16"


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, LinearSpec) or spec.inputs != spec.outputs or spec.inputs < FEWEST:
        return []
    sides = [p for p in range(2, spec.inputs // 2 + 1) if spec.inputs % p == 0]
    sides = sorted(sides, key=lambda p: (p + spec.inputs // p, p))[:4]  # fewest numbers first
    storages: tuple[MonarchStorage, ...] = ("float16", "column_int8")
    return [Settings(blocks=p, storage=storage) for p in sides for storage in storages]


def empty(spec: Spec, settings: Settings) -> Served:
    assert isinstance(spec, LinearSpec)
    if spec.inputs != spec.outputs or spec.inputs % settings.blocks:
        raise BadSettings(
            f"{spec.name} is {spec.outputs} x {spec.inputs}; Monarch matrices are square, with a "
            f"side that the {settings.blocks} blocks divide"
        )
    bias = build.of_bias(spec.outputs, spec.bias, settings.storage)
    return MonarchLinear(spec.inputs, settings.blocks, bias=bias, storage=settings.storage)


def compress(layer: Layer, settings: Settings) -> Served:
    served = empty(layer.spec, settings)
    assert isinstance(served, MonarchLinear)
    p, q = served.p, served.q
    blocks = layer.weight.double().view(p, q, p, q).permute(1, 2, 0, 3)  # [k, i1, o, i2]
    left, scale, right = torch.linalg.svd(blocks, full_matrices=False)
    root = scale[..., :1].sqrt()  # [k, i1, 1]
    served.left.fill((left[..., 0] * root).transpose(1, 2).reshape(q * p, p).float())
    served.right.fill((right[..., 0, :] * root).transpose(0, 1).reshape(p * q, q).float())
    build.keep_mean(served, layer)
    return served
