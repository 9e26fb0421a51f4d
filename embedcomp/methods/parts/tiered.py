"""Low-rank codes of more bits the more often a row is looked up.

Rows in order of count are cut into tiers, whose rows take a fixed number of bits each; within a
tier every bit goes to the column whose error it lowers most. It is reverse water-filling over rows
as well as columns: an error of a row counts by how often it is looked up, so by rate-distortion
theory four times as often is worth a bit more a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import fill_table, layer_moments, output_basis
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.decode import Affine
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.tiers import Tiers

FEWEST_ROWS = 64  # of a table that is worth it
RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
MORE = (1, 2, 3)  # bits of a column in the first tier than in the last one


def worth_trying(
    spec: Spec, tiers: int, coldest: Sequence[float]
) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Ranks, and bits of a row of each tier, that fall from tier to tier by the same number.

    Args:
        coldest: bits of a column in the last tier.
    """
    if not isinstance(spec, TableSpec) or not spec.by_count or spec.rows < FEWEST_ROWS:
        return
    for rank in (*(k for k in RANKS if k < spec.dim), spec.dim):
        for cold in coldest:
            for more in MORE:
                if cold + more <= 8:
                    steps = (more * (tiers - 1 - tier) / (tiers - 1) for tier in range(tiers))
                    yield rank, tuple(rank * (cold + step) for step in steps)


def in_tiers(
    kind: type[Tiers], shares: Sequence[float]
) -> tuple[Callable[[Spec, Any], Served], Callable[[Layer, Any], Served]]:
    """A method's `empty` and `compress`; both raise BadSettings for another number of tiers.

    Args:
        kind: how rows are stored; the settings hold the sizes of rows by the name of its unit.
        shares: of the rows, by tier.
    """

    def with_tiers(spec: TableSpec, settings: Any, ends: Sequence[int]) -> Served:
        sizes = getattr(settings, kind.unit)
        if len(sizes) != len(ends):
            raise BadSettings(
                f"{kind.unit} holds {len(sizes)} numbers, but {spec.name} has {len(ends)} tiers; "
                "give the size of a row of each"
            )
        of_rows = kind(tuple(ends), **{kind.unit: tuple(sizes)})
        stored = StoredRows(spec.rows, settings.rank, of_rows)
        return build.table(spec, stored, Affine(settings.rank, spec.dim, "float16", True))

    def empty(spec: Spec, settings: Any) -> Served:
        assert isinstance(spec, TableSpec)
        return with_tiers(spec, settings, [round(spec.rows * s) for s in accumulate(shares)])

    def compress(layer: Layer, settings: Any) -> Served:
        assert isinstance(layer.spec, TableSpec)
        served = with_tiers(layer.spec, settings, _ends(layer, shares))
        basis, mean = output_basis(layer, settings.weighting), layer_moments(layer)[0]
        fill_table(served, layer, basis, settings.rank, mean, refit=True)
        return served

    return empty, compress


def _ends(layer: Layer, shares: Sequence[float]) -> list[int]:
    """Row after the last one of each tier; rows of a sample stand for others of their tier."""
    rows = len(layer.weight)
    stands_for = torch.ones(rows).double() if layer.stands_for is None else layer.stands_for
    bounds = torch.tensor(list(accumulate(shares))).double() * stands_for.sum()
    found = torch.searchsorted(stands_for.cumsum(0), bounds.round(), right=True).tolist()
    return [*found[:-1], rows]
