"""Truncated singular value decomposition of the weight: the baseline of low-rank methods.

Every row of a table counts the same and nothing is centred. The factors come from the Gram matrix
of the weight's short side.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts.truncated import Truncated, by, candidates_of, empty
from embedcomp.sensitivity.algebra import Basis, basis, gram
from embedcomp.sensitivity.layer import Layer, LinearSpec

__all__ = ["Settings", "candidates", "compress", "empty"]


@dataclass(frozen=True, kw_only=True)
class Settings(Truncated):
    pass


candidates = candidates_of(Settings)


def _basis(layer: Layer) -> Basis:
    """Right singular vectors of a table [rows, dim], left ones of a weight [outputs, inputs]."""
    is_linear = isinstance(layer.spec, LinearSpec)
    return basis(gram(layer.weight.T if is_linear else layer.weight), None)


compress = by(_basis)
