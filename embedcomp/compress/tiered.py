"""Low-rank codes of more bits the more often a row is looked up.

Rows in order of count are cut into tiers, whose rows take a fixed number of bits each; within a
tier every bit goes to the column whose error it lowers most. It is reverse water-filling over rows
as well as columns: an error of a row counts by how often it is looked up, so by rate-distortion
theory four times as often is worth a bit more a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch

from embedcomp.compress import build
from embedcomp.compress.contract import Layer, Served, Spec, TableSpec
from embedcomp.compress.factors import Weighting, fill_table, layer_moments, output_basis
from embedcomp.errors import BadSettings
from embedcomp.served.decode import Affine
from embedcomp.served.tiers import Tiers

FEWEST_ROWS = 64  # of a table that is worth it
RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
MORE = (1, 2, 3)  # bits of a column in the first tier than in the last one

Form = Callable[[int, int, Sequence[int], Sequence[int]], Tiers]  # of rows, width, ends and sizes


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


def empty(
    form: Form, spec: Spec, rank: int, shares: Sequence[float], sizes: Sequence[int]
) -> Served:
    """A table in tiers, without values.

    Args:
        shares: of the rows, by tier.
        sizes: of a row of each tier, as `form` takes them.

    Raises:
        BadSettings: there is another number of sizes.
    """
    assert isinstance(spec, TableSpec)
    ends = [round(spec.rows * share) for share in accumulate(shares)]
    return _with_tiers(form, spec, rank, ends, sizes)


def compress(
    form: Form,
    layer: Layer,
    rank: int,
    shares: Sequence[float],
    sizes: Sequence[int],
    weighting: Weighting,
) -> Served:
    """The same with the layer's rows. Raises BadSettings likewise."""
    assert isinstance(layer.spec, TableSpec)
    served = _with_tiers(form, layer.spec, rank, _ends(layer, shares), sizes)
    basis, mean = output_basis(layer, weighting), layer_moments(layer)[0]
    fill_table(served, layer, basis, rank, mean, refit=True)
    return served


def _with_tiers(
    form: Form, spec: TableSpec, rank: int, ends: Sequence[int], sizes: Sequence[int]
) -> Served:
    if len(sizes) != len(ends):
        raise BadSettings(
            f"there are sizes of {len(sizes)} tiers, but {spec.name} has {len(ends)}; give the "
            "size of a row of each"
        )
    stored = form(spec.rows, rank, ends, sizes)
    return build.table(spec, stored, Affine(rank, spec.dim, "float16", True))


def _ends(layer: Layer, shares: Sequence[float]) -> list[int]:
    """Row after the last one of each tier; rows of a sample stand for others of their tier."""
    rows = len(layer.weight)
    stands_for = torch.ones(rows).double() if layer.stands_for is None else layer.stands_for
    bounds = torch.tensor(list(accumulate(shares))).double() * stands_for.sum()
    found = torch.searchsorted(stands_for.cumsum(0), bounds.round(), right=True).tolist()
    return [*found[:-1], rows]
