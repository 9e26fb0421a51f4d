"""Weight clustering: every value is one of a few, the same few for the whole matrix.

Source: the served form of eDKM, arXiv 2309.00964, whose clusters are learnt; here they are the best
ones for the layer's weights (exact k-means in one dimension), an error counted by how often its row
is looked up, or by its input's second moment, and by what its output costs the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from embedcomp.methods.parts import build
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.kinds.clustered import Clustered
from embedcomp.storage.names import ClusteredBits


@dataclass(frozen=True, kw_only=True)
class Settings:
    bits: ClusteredBits = 4  # of a value


def candidates(spec: Spec) -> list[Settings]:
    return [Settings(bits=bits) for bits in get_args(ClusteredBits)]


def empty(spec: Spec, settings: Settings) -> Served:
    return build.plain(spec, Clustered(settings.bits))


def compress(layer: Layer, settings: Settings) -> Served:
    return build.rounded(layer, Clustered(settings.bits))
