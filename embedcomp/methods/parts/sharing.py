"""Tables whose ids share stored rows by formulas: rows that are left x own rows x rank x storage.

A method says by which probes an id reads the rows that are shared. Such a form is trained: what it
begins with is only as good as the mean of the rows that meet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import as_large, encoded, layer_moments, output_basis
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import IdsMeet, Layer, Spec, TableSpec
from embedcomp.storage.decode import Affine
from embedcomp.storage.index import Probed
from embedcomp.storage.names import FactorStorage
from embedcomp.storage.probes import Probes
from embedcomp.storage.rows import StoredRows

SHARES = (  # of a table, worth trying
    *(0.7, 0.5, 0.35, 0.2, 0.14, 0.1, 0.07, 0.05),
    *(0.03, 0.02, 0.014, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001),
)
OWN = (0.0, 0.5)  # of what is stored, worth giving to the most looked-up ids alone
RANKS = (1, 2, 4, 8, 16)  # coarse, since rows are chosen as well
STORAGE: FactorStorage = "column_int8"  # half the bytes of float16, of which training rounds little
FEWEST = 2  # rows that are worth sharing
ROUNDS = 8  # of fitting rows to what the others leave


@dataclass(frozen=True, kw_only=True)
class SharedRows(IdsMeet):
    """Settings of a method by which the ids of a table share rows."""

    share: float  # of the table's rows that is stored, in numbers
    own: float = 0.0  # of what is stored, the part that is the most looked-up ids' alone, a row
    # each; it takes rows in order of count
    rank: int | None = None  # of the codes that are shared; None: the table's columns as they are
    storage: FactorStorage = STORAGE
    salt: int = 0  # equal ones share alike


Settings = TypeVar("Settings", bound=SharedRows)


def candidates(spec: Spec, kind: type[Settings], parts: int = 1) -> list[Settings]:
    """Sizes worth trying on a table.

    Args:
        parts: that a row's columns are cut into.
    """
    if not isinstance(spec, TableSpec):
        return []
    found = [
        kind(share=share, own=own, rank=rank)
        for share in SHARES
        if share * spec.rows >= FEWEST
        for own in OWN
        if not own or spec.by_count
        for rank in (None, *RANKS)
        if (rank or spec.dim) % parts == 0 and (rank is None or rank < spec.dim)
    ]
    return [one for one in found if not one.own or sizes(spec, one, parts)[0]]


def unlike(
    spec: Spec, found: Sequence[Settings], empty: Callable[[Spec, Settings], CompressedTable]
) -> list[Settings]:
    """The first of all settings that make one table, where a method rounds sizes further."""
    tables: dict[Hashable, Settings] = {}
    with torch.device("meta"):
        for one in found:
            index = empty(spec, one).index
            assert isinstance(index, Probed)
            tables.setdefault((index.probes, one.rank, one.storage), one)
    return [*tables.values()]


def empty(
    spec: Spec, settings: SharedRows, probes: Callable[[int, int], Probes], parts: int = 1
) -> CompressedTable:
    """The table, without numbers.

    Args:
        probes: of so many own ids, and so many rows for all others.
        parts: that a row's columns are cut into, each a stored row.

    Raises:
        BadSettings: the columns cannot be cut so.
    """
    assert isinstance(spec, TableSpec)
    width = spec.dim if settings.rank is None else settings.rank
    if width % parts or not 0 < width <= spec.dim:
        raise BadSettings(
            f"{spec.name} has {spec.dim} columns, so {width} cannot be shared in {parts} equal "
            "parts"
        )
    found = probes(*sizes(spec, settings, parts))
    index = Probed(found.end, found)
    rows = StoredRows(index.stored, width // parts, settings.storage)
    decode = None
    if settings.rank is not None:
        decode = Affine(width, spec.dim, build.of_decoder(settings.storage), True)
    return build.table(spec, rows, decode, index)


def sizes(spec: TableSpec, settings: SharedRows, parts: int) -> tuple[int, int]:
    """Ids with rows of their own, and stored rows, each a part of a table's, for all others."""
    stored = max(round(settings.share * spec.rows), FEWEST)
    own = min(round(settings.own * stored), spec.rows - 1, stored - FEWEST)
    return own, (stored - own) * parts


def fill(served: CompressedTable, layer: Layer) -> CompressedTable:
    """Fill it with what comes nearest to the layer's rows, or with as large numbers as they have.

    A table whose numbers were drawn says nothing of them but how large they are, so each row takes
    those of one id, of which a mean would be far smaller.
    """
    codes = layer.weight
    if isinstance(served.decode, Affine):
        basis, mean = output_basis(layer, "loss"), layer_moments(layer)[0]
        layer = as_large(layer, basis, served.code_width)
        codes = encoded(layer.weight, basis.encoder[:, : served.code_width], mean)
        served.decode.fill(basis.decoder[: served.code_width], mean)
    assert isinstance(served.index, Probed)
    probes = served.index.probes
    places = probes.rows(torch.arange(served.rows))  # [ids, probes]
    weights = torch.ones(served.rows).double() if layer.counts is None else layer.counts
    weights = weights + weights.mean() * 1e-9  # so that what is never looked up has a mean as well
    stored = (_drawn if layer.drawn else _nearest)(
        probes, places, codes, weights, served.stored.rows
    )
    served.fill(stored, served.reads(weights))
    return served


def _nearest(probes: Probes, places: Tensor, codes: Tensor, weights: Tensor, stored: int) -> Tensor:
    """Stored rows [stored, c] whose combinations are nearest to the codes [ids, k]."""
    each = _each(weights, probes)
    if not probes.mixes:
        return _means(places.view(-1), codes.reshape(places.numel(), -1), each, stored)
    fit = _factors if probes.combine == "multiply" else _terms
    found = fit(places[probes.own :], codes[probes.own :], weights[probes.own :], stored)
    own = places[: probes.own, 0]
    return found.index_copy_(0, own, codes[: probes.own])


def _terms(places: Tensor, codes: Tensor, weights: Tensor, stored: int) -> Tensor:
    """Rows [stored, k] whose sums are nearest to the codes: each takes its share of what is left.

    Rounds of simultaneous reconstruction (Andersen and Kak, Ultrasonic Imaging 1984), since probes
    may read the same rows.
    """
    probes = places.shape[1]
    found = torch.zeros(stored, codes.shape[1])
    each = weights.repeat_interleave(probes)
    for _ in range(ROUNDS):
        left = codes - found[places].sum(1)
        shares = (left / probes).repeat_interleave(probes, 0)
        found += _means(places.reshape(-1), shares, each, stored)
    return found


def _factors(places: Tensor, codes: Tensor, weights: Tensor, stored: int) -> Tensor:
    """Rows [stored, k] whose products are nearest to the codes: of one probe after the other.

    Probes read rows of their own here.
    """
    found = torch.ones(stored, codes.shape[1])
    for _ in range(ROUNDS):
        for probe in range(places.shape[1]):
            part, others = places[:, probe], [p for p in range(places.shape[1]) if p != probe]
            by = found[places[:, others]].prod(1)
            fitted = _slopes(part, codes, by, weights, stored)
            found[part] = fitted[part]
    return found


def _means(places: Tensor, values: Tensor, weights: Tensor, stored: int) -> Tensor:
    """Weighted mean of the values [n, c] that each stored row is to stand for."""
    return _slopes(places, values, torch.ones(1, 1), weights, stored)


def _slopes(places: Tensor, values: Tensor, by: Tensor, weights: Tensor, stored: int) -> Tensor:
    """Rows r [stored, c] with the least weighted sum of (values - r by)^2; 0 where none is read."""
    width, w = values.shape[1], weights[:, None]
    above = torch.zeros(stored, width).double().index_add_(0, places, w * values.double() * by)
    below = torch.zeros(stored, width).double()
    below.index_add_(0, places, (w * by.double().square()).expand(-1, width))
    return (above / below.clamp_min(torch.finfo(torch.float64).tiny)).float()


def _drawn(probes: Probes, places: Tensor, codes: Tensor, weights: Tensor, stored: int) -> Tensor:
    """Stored rows [stored, c] so that combinations are as large as the codes [ids, k].

    A row takes the numbers of its most looked-up id. Of products the first probe has the numbers,
    and the others are near 1, as quotient and remainder (arXiv 1909.02107) train best.
    """
    rows, probe = places.view(-1), torch.arange(places.shape[1]).repeat(len(places))
    order = torch.argsort(_each(weights, probes), descending=True, stable=True)
    first = torch.full((stored,), len(rows)).scatter_reduce(
        0, rows[order], torch.arange(len(rows)), "amin"
    )
    read = first < len(rows)
    of = order[first.clamp_max(len(rows) - 1)]
    if not probes.mixes:
        found = codes.reshape(len(rows), -1)[of]
    else:
        found = codes[of // places.shape[1]]
        if probes.combine == "multiply":
            found = found + (probe[of] > 0).float()[:, None]
        else:
            own = of // places.shape[1] < probes.own
            found = found * torch.where(own, 1.0, places.shape[1] ** -0.5)[:, None]
    return found * read[:, None]


def _each(weights: Tensor, probes: Probes) -> Tensor:
    """Weights of the ids, once a probe: [ids * probes]."""
    return weights.repeat_interleave(len(probes.probes))
