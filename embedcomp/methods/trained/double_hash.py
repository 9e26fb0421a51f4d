"""Every id reads two rows by two hashes, which are put beside each other or added.

Two ids share both rows with a probability of one over the square of the rows, where with one hash
it is one over them (Zhang et al., RecSys 2020). Put beside each other the rows are half as wide, so
there are twice as many of them in the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from embedcomp.methods.parts import sharing
from embedcomp.methods.parts.sharing import SharedRows
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, Spec, TableSpec
from embedcomp.storage.probes import Probes, hashed


@dataclass(frozen=True, kw_only=True)
class Settings(SharedRows):
    """How many rows there are, and how two of them become one."""

    combine: Literal["concat", "add"] = "concat"


def candidates(spec: Spec) -> list[Settings]:
    added = [replace(one, combine="add") for one in sharing.candidates(spec, Settings)]
    return [*sharing.candidates(spec, Settings, parts=2), *added]


def empty(spec: Spec, settings: Settings) -> CompressedTable:
    assert isinstance(spec, TableSpec)
    ids, salt = spec.rows, settings.salt

    def probes(own: int, rows: int) -> Probes:
        pair = tuple(hashed(ids - own, rows, salt=2 * salt + which) for which in range(2))
        return Probes(probes=pair, combine=settings.combine, own=own, own_start=rows)

    return sharing.empty(spec, settings, probes, parts=2 if settings.combine == "concat" else 1)


def compress(layer: Layer, settings: Settings) -> Served:
    return sharing.fill(empty(layer.spec, settings), layer)
