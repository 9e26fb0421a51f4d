"""Codebooks by weighted k-means, the same whatever the number of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedcomp.kernels import native
from embedcomp.kernels.threads import one_thread
from embedcomp.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 1 << 16  # rows or values that a codebook is fitted to
MOST_SPREAD = 256  # words that k-means++ chooses; it takes long for more, and gains little
STARTED = 16  # rows a word that k-means++ chooses the first words from
TURNS = 10  # of Lloyd's algorithm; ten more lower the error by less than 0.5 %
COMPARED_ROWS = 1 << 8  # whose distances to all words stay in a core's cache
GROUPS = 768  # of values, of which the exact clustering is made
POLISHES = 50  # Lloyd turns over single values
ENCODED_ROWS = 1 << 16  # at a time, so that what is made of them fits
LEAST_SCALE = 2.0**-10  # of a column that matters less than another one


def sampled(weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Places of at most `most` rows, int64, and how many rows each stands for, float64.

    The heaviest half, which stand for themselves, and every so many-th other.

    Args:
        weights: [n]; more than `most`, none negative.
    """
    order = torch.argsort(weights, descending=True, stable=True)
    head, tail = order[: most // 2], order[most // 2 :]
    step = -(-len(tail) // (most - most // 2))
    kept = torch.cat([head, tail[step // 2 :: step]])
    stands_for = torch.ones(len(kept)).double()
    stands_for[len(head) :] = len(tail) / max(len(kept) - len(head), 1)
    return kept, stands_for


def seen(rows: Tensor, weights: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
    """At most `most` of the rows [n, d] that weigh something, and their weights, float64 [n]."""
    n = len(rows)
    w = torch.ones(n).double() if weights is None or not weights.any() else weights.double()
    heavy = w.nonzero()[:, 0]
    if len(heavy) < n:
        rows, w = rows[heavy], w[heavy]
    if len(rows) <= most:
        return rows, w
    kept, stands_for = sampled(w, most)
    return rows[kept], w[kept] * stands_for


def words_of(rows: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """Codewords float32 [count, d] of small weighted squared distance to rows [n, d].

    Exactly the rows, in order and then repeated, if no more than `count` are different.

    Args:
        weights: [n], of the squared distances; None: all the same.
    """
    if not rows.numel():
        return torch.zeros(count, rows.shape[1])
    some, w = seen(rows, weights, SAMPLED)
    different = _different(some, count)
    if different is not None:
        every = _different(rows, count)  # also those that weigh nothing
        found = different if every is None else every
        return found[torch.arange(count).clamp_max(len(found) - 1)]
    if rows.shape[1] == 1:
        values = clusters(some[:, 0].double().numpy(), w.numpy(), count)
        return torch.from_numpy(values).float()[:, None]
    return _clustered(some, w, count)


def _different(rows: Tensor, most: int) -> Tensor | None:
    """The distinct rows, in order; None if there are more than `most`."""
    for some in (rows[: 4 * most], rows):  # a few rows mostly tell
        found = torch.unique(some, dim=0)
        if len(found) > most:
            return None
    return found


def _clustered(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """k-means++, by scikit-learn, and Lloyd's algorithm; many words begin as some of the rows."""
    largest = rows.abs().max()
    rows, weights = rows / largest, weights / weights.sum()
    words = (_spread if count <= MOST_SPREAD else _evenly)(rows, weights, count).float()
    for _ in range(TURNS):
        words, _ = refined(rows, weights, words)
    return words * largest


def _spread(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """Rows [count, d] that are far from one another: k-means++."""
    from sklearn.cluster import kmeans_plusplus  # takes a second, and only fitting needs it

    start, w = rows, weights
    if len(rows) > STARTED * count:
        kept, stands_for = sampled(weights, STARTED * count)
        start, w = rows[kept], weights[kept] * stands_for
    with one_thread():
        found, _ = kmeans_plusplus(
            start.double().numpy(), count, sample_weight=w.numpy(), random_state=0
        )
    return torch.from_numpy(found)


def _evenly(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """Every so many-th of the rows in order of weight [count, d]."""
    order = torch.argsort(weights, descending=True, stable=True)
    return rows[order[torch.arange(count) * len(rows) // count]]


def refined(rows: Tensor, weights: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """One turn of Lloyd's algorithm: words float32 [count, d], and the codes int64 [n] they fit.

    Args:
        rows: [n, d], contiguous.
        weights: float64 [n].
    """
    codes = torch.empty(len(rows), dtype=torch.uint8 if len(words) <= 256 else torch.int16)
    nearest(rows, words, codes)
    return means(rows, weights, codes.long(), words), codes.long()


def means(rows: Tensor, weights: Tensor, codes: Tensor, words: Tensor) -> Tensor:
    """Weighted means of the rows of each code; a code without rows keeps its word."""
    mass = torch.zeros(len(words)).double().index_add_(0, codes, weights)
    sums = torch.zeros(words.shape).double().index_add_(0, codes, rows * weights[:, None])
    return torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-300)[:, None], words).float()


def nearest(rows: Tensor, words: Tensor, codes: Tensor) -> None:
    """Fill codes [n] with the numbers of the words [words, d] nearest to rows [n, d].

    Args:
        codes: uint8, or int16 where there are more words.
    """
    if rows.is_cpu and codes.dtype == torch.uint8 and native.library() is not None:
        room = -len(words) % 16  # the engine compares with whole vectors of words
        turned = torch.nn.functional.pad(words.T, (0, room), value=torch.inf).contiguous()
        native.needed().embedcomp_nearest(
            *(rows.data_ptr(), len(rows), rows.stride(0), rows.shape[1]),
            *(turned.data_ptr(), turned.shape[1], codes.data_ptr(), codes.stride(0)),
        )
        return
    turned, squares = words.double().T.contiguous(), words.double().square().sum(1)
    for some, place in zip(rows.split(COMPARED_ROWS), codes.split(COMPARED_ROWS), strict=True):
        # in float64, in which a distance hardly depends on the rows around it
        place.copy_(torch.addmm(squares, some.double(), turned, alpha=-2).argmin(1))


def clusters(values: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """The best `count` numbers to stand for values [n], in order; float64.

    Many values become groups, as dense as good codewords would be (Panter and Dite: the cube root
    of the density); dynamic programming finds the best clusters of groups, and Lloyd's algorithm
    moves their edges to single values.

    Args:
        values: more than `count` different ones.
        weights: [n], positive.
    """
    points, start = np.unique(np.sort(values), return_index=True)
    mass = np.add.reduceat(weights[np.argsort(values, kind="stable")], start)
    cuts = _cuts(points, mass)
    group_mass = np.add.reduceat(mass, cuts)
    groups = np.add.reduceat(points * mass, cuts) / group_mass
    first = _best_cuts(groups, group_mass, min(count, len(groups)))
    centres = np.add.reduceat(groups * group_mass, first) / np.add.reduceat(group_mass, first)
    centres = np.concatenate([centres, np.repeat(centres[-1:], count - len(centres))])
    return _polished(points, mass, centres)


def _cuts(points: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Where groups begin: every point, or GROUPS places (a share of them even in number)."""
    if len(points) <= GROUPS:
        return np.arange(len(points))
    density = np.cbrt((mass[1:] + mass[:-1]) / 2) * np.cbrt(np.diff(points)) ** 2
    even = np.full(len(density), density.mean() / 4)
    reached = np.concatenate([[0.0], np.cumsum(density + even)])
    return np.unique(np.searchsorted(reached, reached[-1] * np.arange(GROUPS) / GROUPS))


def _best_cuts(values: np.ndarray, mass: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` clusters of least weighted squared error begin, of values in order."""
    n = len(values)
    cost = _costs(values, mass)  # [last, first]
    least = cost[:, 0]
    back = np.zeros((count, n), np.int64)  # first of the last cluster of values up to [.]
    for cluster in range(1, count):
        total = cost[:, 1:] + least[:-1]
        back[cluster] = total.argmin(1) + 1
        least = total.min(1)
    first, last = [], n - 1
    for cluster in range(count - 1, -1, -1):
        first.append(back[cluster, last])
        last = first[-1] - 1
    return np.array(first[::-1])


def _costs(values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Squared error [n, n] of one cluster of the values from the second index to the first."""
    centred = values - (values * mass).sum() / mass.sum()
    sums = [np.concatenate([[0.0], np.cumsum(mass * centred**power)]) for power in range(3)]
    zeroth, one, two = (total[1:, None] - total[None, :-1] for total in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.maximum(two - one**2 / zeroth, 0)
    return np.where(np.tri(len(values), dtype=bool), cost, np.inf)


def _polished(points: np.ndarray, mass: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Lloyd's algorithm on points in order."""
    masses, moments = (np.concatenate([[0.0], np.cumsum(x)]) for x in (mass, mass * points))
    for _ in range(POLISHES):
        inner = np.searchsorted(points, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], inner, [len(points)]])
        held, moment = np.diff(masses[edges]), np.diff(moments[edges])
        moved = np.where(held > 0, moment / np.where(held > 0, held, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = np.sort(moved)
    return centres


def column_scales(matters: Tensor | None, first: int, last: int) -> Tensor:
    """What to multiply columns by, so that their errors count as they matter; the largest is 1.

    Args:
        matters: [width], how much a squared error in a column does; None: all the same.
    """
    if matters is None or not matters[first:last].any():
        return torch.ones(last - first)
    scales = matters[first:last].float().sqrt()
    # as they are stored, so that fitting and encoding see the same
    return (scales / scales.max()).clamp_min(LEAST_SCALE).half().float()
