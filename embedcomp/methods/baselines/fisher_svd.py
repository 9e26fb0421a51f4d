"""Singular value decomposition of rows weighted by their squared gradients (FWSVD).

Source: Hsu et al., ICLR 2022. With r_i the root of row i's squared gradient, summed over its
columns and averaged over the log, the decomposition of diag(r) W is cut to rank k and divided by r
again. Rows without a gradient are clamped: they weigh as little as the least of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedcomp.methods.parts.truncated import Truncated, by, candidates_of, empty
from embedcomp.sensitivity.algebra import (
    Basis,
    basis,
    gram,
    roots,
)
from embedcomp.sensitivity.layer import Layer, LinearSpec

__all__ = ["Settings", "candidates", "compress", "empty"]


@dataclass(frozen=True, kw_only=True)
class Settings(Truncated):
    pass


candidates = candidates_of(Settings)


def _basis(layer: Layer) -> Basis:
    weights = _clamped(layer)
    if isinstance(layer.spec, LinearSpec):  # directions of the output, in the metric diag(r^2)
        return basis(gram(layer.weight.T), roots(weights.diag()))
    return basis(gram(layer.weight, weights), None)


def _clamped(layer: Layer) -> Tensor:
    """r^2 of every row, float64 [rows]; all 1 where no gradients were measured."""
    found = layer.fisher
    if found is None or not bool((found > 0).any()):
        return torch.ones(len(layer.weight)).double()
    return found.clamp_min(float(found[found > 0].min()))


compress = by(_basis)
