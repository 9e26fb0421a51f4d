"""Rows as sums of a few atoms of a dictionary, each times a number.

Source: CoSpaDi, arXiv 2509.22075; orthogonal matching pursuit, and the method of optimal directions
(MOD, Engan et al. 1999) for the dictionary. Coefficients are signed bytes in steps of an atom's own
largest: in 12 bytes a row they left 0.0056 of a table's squares, 16-bit ones 0.0076.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedcomp.kernels import native
from embedcomp.storage.kmeans import seen, words_of
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ROWS = 1 << 10  # whose likeness to every atom stays in a core's cache
SAMPLED_ROWS = 1 << 13  # that a dictionary is fitted to
TURNS = 5  # of pursuit and of fitting the dictionary; three more lower the error by 5 %
RIDGE = 1e-6
LARGEST = 127  # coefficient of an atom, as a signed byte
INDEPENDENT = 1e-6  # length that an atom adds to the span of those before it; less is nothing


def pursued(rows: Tensor, atoms: Tensor, count: int, rounded: bool) -> tuple[Tensor, Tensor]:
    """Numbers of atoms, int64 [n, count], and coefficients, float64 [n, count].

    Args:
        rows, atoms: [n, d] and [m, d].
        rounded: coefficients are whole, of `LARGEST` at most; the earlier ones make up for the
            rounding of the later ones.
    """
    lengths = atoms.double().norm(dim=1)
    unit = atoms.double() / torch.where(lengths > 0, lengths, 1.0)[:, None]
    most = LARGEST * lengths if rounded else torch.full_like(lengths, torch.inf)
    left = target = rows.double()
    which: list[Tensor] = []
    along: list[Tensor] = []  # orthonormal directions of the atoms so far
    across: list[list[Tensor]] = []  # how much of atom j is along direction i, by j and i
    for _ in range(count):
        which.append(likest(left, unit, most))
        direction = unit[which[-1]]
        across.append([(direction * before).sum(1) for before in along])
        for times, before in zip(across[-1], along, strict=True):
            direction = direction - times[:, None] * before
        length = direction.norm(dim=1)
        across[-1].append(length)
        along.append(direction / length.clamp_min(INDEPENDENT)[:, None])
        left = left - (left * along[-1]).sum(1, keepdim=True) * along[-1]
    reached = [(target * direction).sum(1) for direction in along]
    chosen = torch.stack(which, 1)
    return chosen, _solved(reached, across, lengths[chosen], rounded)


def likest(rows: Tensor, unit: Tensor, most: Tensor) -> Tensor:
    """Numbers int64 [n] of the atoms that leave the least of rows [n, d].

    Args:
        unit: [m, d], of length 1 (or 0).
        most: [m], the largest coefficient of each.
    """
    if rows.is_cpu and native.library() is not None:
        room = -len(unit) % 16  # the engine compares with whole vectors of atoms
        pad = torch.nn.functional.pad
        x, turned = rows.float().contiguous(), pad(unit.T.float(), (0, room)).contiguous()
        limits, found = pad(most.float(), (0, room)), rows.new_empty(len(rows), dtype=torch.uint8)
        native.needed().embedcomp_likest(
            *(x.data_ptr(), len(x), x.stride(0), x.shape[1], turned.data_ptr()),
            *(turned.shape[1], limits.data_ptr(), found.data_ptr()),
        )
        return found.long()
    parts = []
    for some in rows.split(CHUNK_ROWS):
        likeness = (some @ unit.T).abs()
        times = torch.minimum(likeness, most)
        parts.append((times * (2 * likeness - times)).argmax(1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def _solved(
    reached: list[Tensor], across: list[list[Tensor]], lengths: Tensor, rounded: bool
) -> Tensor:
    """Coefficients [n, count] of atoms of these lengths, the last one first.

    Args:
        reached: [n] along each direction.
        across: how much of atom j is along direction i, by j and i.
    """
    found: list[Tensor] = []  # in reverse
    for i in range(len(reached) - 1, -1, -1):
        rest = reached[i]
        for k, times in enumerate(reversed(found)):
            rest = rest - across[i + 1 + k][i] * times
        own = across[i][i]
        times = torch.where(own > INDEPENDENT, rest / own.clamp_min(INDEPENDENT), 0.0)
        if rounded:
            step = lengths[:, i]
            times = (times / step.clamp_min(1e-300)).round().clamp(-LARGEST, LARGEST) * step
        found.append(times)
    by = torch.stack(found[::-1], 1) / torch.where(lengths > 0, lengths, 1.0)
    return by.round() if rounded else by


def dictionary_of(rows: Tensor, weights: Tensor | None, atoms: int, count: int) -> Tensor:
    """Atoms float32 [atoms, d], each as long as its largest part of a row, for rows [n, d].

    Args:
        weights: [n], of the squared errors; None: all the same.
        count: atoms of a row.
    """
    some, w = seen(rows, weights, SAMPLED_ROWS)
    found = words_of(some, w, atoms)
    some = some.double()
    for _ in range(TURNS):
        which, by = pursued(some, found, count, rounded=False)
        found = _refitted(some, w, found.double(), which, by)
    which, by = pursued(some, found, count, rounded=False)
    largest = torch.zeros(atoms).double()
    largest.scatter_reduce_(0, which.flatten(), by.abs().flatten(), "amax")
    return (found * largest[:, None]).float()


def _refitted(rows: Tensor, weights: Tensor, atoms: Tensor, which: Tensor, by: Tensor) -> Tensor:
    """The atoms that fit these coefficients best; atoms that no row has become the worst rows."""
    m = len(atoms)
    gram, moment = torch.zeros(m * m).double(), torch.zeros_like(atoms)
    for i, times in enumerate((by * weights[:, None]).T):
        moment.index_add_(0, which[:, i], times[:, None] * rows)
        for j in range(which.shape[1]):
            gram.index_add_(0, which[:, i] * m + which[:, j], times * by[:, j])
    gram = gram.view(m, m)
    mass = gram.diagonal()
    ridge = RIDGE * mass + torch.finfo(torch.float32).tiny
    unused = (mass <= 0).nonzero()[:, 0]
    fitted = torch.linalg.solve(gram + ridge.diag(), moment + ridge[:, None] * atoms)
    if len(unused):
        off = (rows - summed(fitted, which, by)).square().sum(1) * weights
        worst = off.topk(min(len(unused), len(rows))).indices
        fitted[unused[: len(worst)]] = rows[worst]
    return fitted


def summed(atoms: Tensor, which: Tensor, by: Tensor) -> Tensor:
    """Rows [n, d] of atoms [m, d], their numbers and coefficients [n, count], one after another."""
    rows = torch.zeros(len(which), atoms.shape[1], dtype=atoms.dtype)
    for i in range(which.shape[1]):
        rows += atoms.index_select(0, which[:, i]) * by[:, i, None]
    return rows
