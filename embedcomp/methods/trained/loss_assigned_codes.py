"""Low-rank codes that are sums of words, a word for each code, whose codes the log's loss chooses.

Rows that are looked up less have fewer codes, the first ones of those that others have (residual
vector quantization; kinds/residual.py). While the words are trained, every id takes after each
epoch the codes of least loss over its own rows of the log (storage/assigned.py): PV-Tuning's lesson
(arXiv 2405.14852), that gradients alone leave much where codes are discrete.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedcomp.methods.parts import tiered
from embedcomp.methods.parts.factors import encoded, layer_moments, output_basis
from embedcomp.methods.parts.tiered import TieredRows
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, Spec, TableSpec
from embedcomp.storage.assigned import AssignedRows
from embedcomp.storage.decode import Affine
from embedcomp.storage.kinds.residual import Residual

STAGES = (  # codes of a row by tier
    *((1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1), (2, 1, 1, 0), (2, 2, 1, 1)),
    *((2, 2, 2, 2), (3, 2, 2, 1), (3, 3, 3, 2)),
)
BITS = (4, 6, 8, 10, 12)  # of a code
RANKS = (2, 4, 8, 16)
SHARED = 4  # rows that a word stands for at least, on average


@dataclass(frozen=True, kw_only=True)
class Settings(TieredRows):
    stages: tuple[int, ...]  # codes of a row of each tier, the most looked-up first
    bits: tuple[int, ...]  # of the code into each codebook


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec) or not spec.counted or spec.rows < tiered.FEWEST_ROWS:
        return []
    return [
        Settings(rank=rank, stages=stages, bits=(bits,) * max(stages), index=_index(spec, stages))
        for stages in STAGES
        for bits in BITS
        if SHARED << bits <= spec.rows
        for rank in dict.fromkeys(min(rank, spec.dim) for rank in RANKS)
    ]


def _index(spec: Spec, stages: tuple[int, ...]) -> tiered.Ranks | None:
    """What finds a row; nothing is needed where all have as many codes."""
    return tiered.index_for(spec) if len(set(stages)) > 1 else None


def empty(spec: Spec, settings: Settings) -> Served:
    return tiered.empty(spec, settings, Residual)


def compress(layer: Layer, settings: Settings) -> Served:
    if layer.drawn:
        return _drawn(layer, settings)
    return tiered.compress(layer, settings, Residual)


def _drawn(layer: Layer, settings: Settings) -> Served:
    """Words drawn at random, so that rows are as large as the layer's, and codes by a hash."""
    served, basis = tiered.laid_out(layer, settings, Residual), output_basis(layer, "output")
    mean = layer_moments(layer)[0]
    assert isinstance(served, CompressedTable) and isinstance(served.decode, Affine)
    assert isinstance(served.stored, AssignedRows)
    deviations = encoded(layer.weight, basis.encoder[:, : settings.rank], mean).std(0)
    served.stored.draw(deviations, torch.Generator().manual_seed(0))
    served.decode.fill(basis.decoder[: settings.rank], mean)
    return served
