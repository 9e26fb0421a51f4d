"""Integer codes with a scale and an offset a column, and as many bits as each column deserves.

A row takes nothing but its codes. Where columns differ in bits, each bit of a row goes to the
column whose error it lowers most (reverse water-filling on measured errors, weighted by counts and
by what an error in the column costs). The same on codes of low rank is a storage of `low_rank`.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts import build
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.names import ColumnStorage


@dataclass(frozen=True, kw_only=True)
class Settings:
    storage: ColumnStorage


def candidates(spec: Spec) -> list[Settings]:
    return [Settings(storage=storage) for storage in build.COLUMN_STORAGES]


def empty(spec: Spec, settings: Settings) -> Served:
    return build.plain(spec, settings.storage)


def compress(layer: Layer, settings: Settings) -> Served:
    return build.rounded(layer, settings.storage)
