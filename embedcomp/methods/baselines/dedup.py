"""Similar rows stored once.

Rows are rounded to a grid in the metric of the loss, and those that fall into one cell become their
mean, weighted by counts (as merging similar blocks by locality-sensitive hashing does). The grid is
the finest that leaves no more than the wanted number of rows. A sample of a large table has fewer
rows alike, so there the predicted loss is above the real one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedcomp.methods.parts import fewer_rows
from embedcomp.methods.parts.factors import output_basis
from embedcomp.methods.parts.fewer_rows import FewerRows
from embedcomp.sensitivity.layer import Layer, Served, Spec

STEPS = 24  # of the search for the grid


@dataclass(frozen=True, kw_only=True)
class Settings(FewerRows):
    pass


def candidates(spec: Spec) -> list[Settings]:
    return fewer_rows.candidates(spec, Settings)


def empty(spec: Spec, settings: Settings) -> Served:
    return fewer_rows.empty(spec, "map", settings)


def compress(layer: Layer, settings: Settings) -> Served:
    stored = fewer_rows.kept(len(layer.weight), settings.share)
    return fewer_rows.compress(layer, "map", settings, _cells, stored)


def _cells(layer: Layer, most: int) -> Tensor:
    """Cells, at most `most`, into which rows fall: int64 [rows]."""
    found = output_basis(layer, "loss")
    codes = layer.weight.double() @ found.encoder * found.weights.sqrt()
    coarse, fine = 0.0, 1.0  # cells an octave of the largest code
    largest = codes.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    while _number(codes / largest * fine) <= most and fine < 2**40:
        coarse, fine = fine, 4 * fine
    for _ in range(STEPS):
        middle = (coarse + fine) / 2
        if _number(codes / largest * middle) <= most:
            coarse = middle
        else:
            fine = middle
    return _places(codes / largest * coarse)


def _number(cells: Tensor) -> int:
    return int(_places(cells).max()) + 1


def _places(cells: Tensor) -> Tensor:
    """Numbers of the different cells, int64 [rows]."""
    keys = (cells.round().long() * _multipliers(cells.shape[1])).sum(1)  # modulo 2^64
    return torch.unique(keys, return_inverse=True)[1]


def _multipliers(columns: int) -> Tensor:
    """Odd numbers, so that cells have different keys but for a chance of about rows^2 / 2^64."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randint(2**62, (columns,), generator=generator) + 1
