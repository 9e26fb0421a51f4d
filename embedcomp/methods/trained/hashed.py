"""Fewer rows than ids, which share them by a hash.

The hashing trick (Weinberger et al., ICML 2009), which every other way to share rows has to beat.
With rows of their own for the most looked-up ids it is AdaEmbed's static form, or the
frequency-adaptive one of the benchmark of arXiv 2311.15578.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts import sharing
from embedcomp.methods.parts.sharing import SharedRows
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, Spec, TableSpec
from embedcomp.storage.probes import Probes, hashed


@dataclass(frozen=True, kw_only=True)
class Settings(SharedRows):
    """How many rows there are, and in which form."""


def candidates(spec: Spec) -> list[Settings]:
    return sharing.candidates(spec, Settings)


def empty(spec: Spec, settings: Settings) -> CompressedTable:
    assert isinstance(spec, TableSpec)
    ids = spec.rows

    def probes(own: int, rows: int) -> Probes:
        probe = hashed(ids - own, rows, salt=settings.salt)
        return Probes(probes=(probe,), own=own, own_start=rows)

    return sharing.empty(spec, settings, probes)


def compress(layer: Layer, settings: Settings) -> Served:
    return sharing.fill(empty(layer.spec, settings), layer)
