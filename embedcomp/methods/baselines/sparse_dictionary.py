"""Rows as sums of a few atoms of a dictionary (CoSpaDi).

Source: arXiv 2509.22075, which fits the dictionary to activations; here an error counts by how
often its row is looked up, or by its input's second moment, and by what its column or output costs
the loss. A row takes two bytes an atom. Of a linear layer the rows are those of its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts import build
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.kinds.sparse_dictionary import SparseDictionary


@dataclass(frozen=True, kw_only=True)
class Settings:
    row_atoms: int  # that a row is a sum of
    atoms: int = 256  # of the dictionary, 256 at most


def candidates(spec: Spec) -> list[Settings]:
    width = spec.dim if isinstance(spec, TableSpec) else spec.inputs
    most = max(width // 2, 1)  # of two bytes, where a value has four
    found = [
        Settings(row_atoms=count, atoms=atoms)
        for atoms in (256, 64, 16)
        for count in (1, 2, 4, 8)
        if count <= most and 4 * count <= atoms
    ]
    return build.paying(spec, found, empty)


def empty(spec: Spec, settings: Settings) -> Served:
    return build.plain(spec, SparseDictionary(settings.row_atoms, settings.atoms))


def compress(layer: Layer, settings: Settings) -> Served:
    return build.rounded(layer, SparseDictionary(settings.row_atoms, settings.atoms))
