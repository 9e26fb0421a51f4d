"""Moments and leading directions, in float64 on the small side of a matrix.

A table has millions of rows and tens of columns: its d x d Gram matrix holds all that a low-rank
method needs, and one pass over the rows makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from embedcomp.kernels.threads import one_thread

CHUNK_ROWS = 1 << 12  # whose float64 copy stays in a core's cache
DAMPING = 0.001  # share of a measured gradient matrix that is replaced by its mean eigenvalue
RIDGE = 1e-9
NULL = 1e-12  # share of the largest eigenvalue that is rounding


def chunks(rows: Tensor, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows [n, d] as float64 and their weights, a cache's worth at a time."""
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        yield rows[part].double(), None if weights is None else weights[part].double()


def moments(rows: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted mean [d] and covariance [d, d] of rows [n, d]; float64.

    Sums are taken around a rough mean, so that a large mean does not drown a small covariance.
    """
    d = rows.shape[1]
    shift = rows[: 1 << 10].double().mean(0)
    total, first = 0.0, torch.zeros(d, dtype=torch.float64)
    second = torch.zeros(d, d, dtype=torch.float64)
    for part, w in chunks(rows, weights):
        values = part - shift
        weighted = values if w is None else values * w[:, None]
        total += len(values) if w is None else float(w.sum())
        first += weighted.sum(0)
        second.addmm_(weighted.T, values)
    mean = first / total
    return shift + mean, second / total - mean.outer(mean)


def gram(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """rows^T diag(weights) rows, float64 [d, d]."""
    d = rows.shape[1]
    total = torch.zeros(d, d, dtype=torch.float64)
    for values, w in chunks(rows, weights):
        total.addmm_((values if w is None else values * w[:, None]).T, values)
    return total


def leading(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [d], largest first, and eigenvectors [d, d] in columns.

    The largest entry of each vector is positive, which makes the answer unique.
    """
    values, vectors = torch.linalg.eigh(symmetric)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if not len(values):  # there is no largest entry of nothing
        return values, vectors
    peaks = vectors.abs().argmax(0, keepdim=True)
    return values, vectors * vectors.gather(0, peaks).sign()


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions, the most valuable first, each decoded with length 1.

    A basis is equal to itself alone, so that what is computed in it can be found by it.

    encoder: [d, d]; its first k columns make codes of rows: (y - mean) @ encoder[:, :k].
    decoder: [d, d]; its first k rows make rows of codes.
    worth: [d], expected squared error (in the metric) of leaving a direction out.
    weights: [d], squared error (in the metric) of a code that is off by 1.
    """

    encoder: Tensor
    decoder: Tensor
    worth: Tensor
    weights: Tensor


class Roots(NamedTuple):
    """A damped metric's symmetric root [d, d] and the inverse of that."""

    root: Tensor
    inverse: Tensor


def roots(metric: Tensor) -> Roots:
    """Roots of a metric [d, d], which is damped.

    A direction without a measured gradient would else be free to go wrong.
    """
    scales, axes = leading((1 - DAMPING) * metric)
    scales = scales + DAMPING * metric.diagonal().mean()
    return Roots((axes * scales.sqrt()) @ axes.T, (axes * scales.rsqrt()) @ axes.T)


def basis(covariance: Tensor, metric: Roots | None) -> Basis:
    """The basis whose first k directions lose least of E[e^T metric e], for every k.

    Args:
        covariance: [d, d] of what is to be approximated.
        metric: of the errors; None for plain squared error.
    """
    if metric is None:
        worth, vectors = leading(covariance)
        return Basis(vectors, vectors.T.contiguous(), worth, torch.ones_like(worth))
    worth, vectors = leading(metric.root @ covariance @ metric.root)
    encoder, decoder = metric.root @ vectors, vectors.T @ metric.inverse
    lengths = decoder.norm(dim=1)  # codes keep the units of what they encode
    return Basis(encoder * lengths, decoder / lengths[:, None], worth, lengths.pow(-2))


def leading_few(errors: Tensor, metric: Roots | None, rank: int) -> tuple[Tensor, Tensor]:
    """Encoder [d, rank] and decoder [rank, d] of errors [d, n], nearly as good as `basis` of them.

    By randomized projections (Halko et al., arXiv 0909.4061), for a few directions of many.
    """
    from sklearn.utils.extmath import randomized_svd  # takes a second

    seen = errors if metric is None else metric.root @ errors
    with one_thread():
        found, _, _ = randomized_svd(seen.float().numpy(), rank, random_state=0)
    vectors = torch.from_numpy(found).double()
    if metric is None:
        return vectors, vectors.T
    return metric.root @ vectors, vectors.T @ metric.inverse


def root(symmetric: Tensor) -> Tensor:
    """R [d, k] with R R^T the positive semidefinite matrix [d, d], without its null space."""
    values, vectors = leading(symmetric)
    kept = values > NULL * values[:1]
    return vectors[:, kept] * values[kept].sqrt()


def solve(symmetric: Tensor, right: Tensor) -> Tensor:
    """symmetric^-1 @ right for a positive semidefinite matrix [k, k], with a tiny ridge."""
    scale = symmetric.diagonal().mean() * RIDGE + torch.finfo(torch.float64).tiny
    eye = torch.eye(len(symmetric), dtype=torch.float64)
    return torch.linalg.solve(symmetric + scale * eye, right)
