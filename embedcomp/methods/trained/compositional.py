"""An id's row is made of that of its quotient and that of its remainder by some divisor.

Shi et al., KDD 2020, arXiv 1909.02107: no two ids have both in common, so each has a row unlike all
others. They are multiplied, added or put beside each other. The published code draws both factors
from numbers that are all positive, so that products are far larger than a table's numbers; here
remainders begin near 1 (methods/parts/sharing.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import sharing
from embedcomp.methods.parts.sharing import SharedRows
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer, Served, Spec, TableSpec
from embedcomp.storage.probes import Combine, Digit, Probes


@dataclass(frozen=True, kw_only=True)
class Settings(SharedRows):
    """How many rows there are for quotients and remainders, and how two of them become one.

    The fewest that there can be for n ids are about twice the root of n.
    """

    combine: Combine = "multiply"


def candidates(spec: Spec) -> list[Settings]:
    found = sharing.candidates(spec, Settings)
    halves = sharing.candidates(spec, Settings, parts=2)
    every = [
        *found,
        *(replace(one, combine="add") for one in found),
        *(replace(one, combine="concat") for one in halves),
    ]
    return sharing.unlike(spec, [one for one in every if _divisor_of(spec, one)], empty)


def empty(spec: Spec, settings: Settings) -> CompressedTable:
    assert isinstance(spec, TableSpec)
    divisor = _divisor_of(spec, settings)

    def probes(own: int, rows: int) -> Probes:
        ids = spec.rows - own
        if divisor is None:
            raise BadSettings(
                f"{spec.name} has {ids:,} ids that share {rows:,} rows, but their quotients and "
                f"remainders need {_fewest(ids):,}; store a larger share of the rows"
            )
        quotients = -(-ids // divisor)
        pair = Digit(rows=quotients, divisor=divisor), Digit(rows=divisor, start=quotients)
        own_start = quotients + divisor
        return Probes(probes=pair, combine=settings.combine, own=own, own_start=own_start)

    return sharing.empty(spec, settings, probes, _parts(settings))


def compress(layer: Layer, settings: Settings) -> Served:
    return sharing.fill(empty(layer.spec, settings), layer)


def _parts(settings: Settings) -> int:
    return 2 if settings.combine == "concat" else 1


def _divisor_of(spec: Spec, settings: Settings) -> int | None:
    """The smallest divisor whose quotients and remainders are few enough; None: there is none.

    It leaves the most rows to quotients, of which ids of similar counts share one.
    """
    assert isinstance(spec, TableSpec)
    own, rows = sharing.sizes(spec, settings, _parts(settings))
    ids = spec.rows - own
    if rows < _fewest(ids):
        return None
    least = max(1, int(rows / 2 - math.sqrt(max(rows * rows / 4 - ids, 0))) - 1)
    return next(c for c in range(least, rows) if -(-ids // c) + c <= rows)


def _fewest(ids: int) -> int:
    """Rows of quotients and remainders together by the best divisor, which is near the root."""
    root = math.isqrt(ids)
    return min(-(-ids // c) + c for c in range(max(root - 1, 1), root + 3))
