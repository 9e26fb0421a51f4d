"""Second moments of wide inputs, in memory that grows with their number and not with its square.

Of inputs x [i] the sums of x (x^T D) are kept, [i, k], with D a fixed random matrix: sums like all
others, so shards add up. They hold the range of the inputs (Nystroem's approximation, as in Tropp
et al., arXiv 1706.05736), exactly where it has k dimensions or fewer; of what is beyond, sums of
squares give the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from embedcomp.sensitivity.algebra import root

MOST_EXACT = 4096  # inputs whose moment is kept whole, 134 MB; wider ones are sketched
DIRECTIONS = 256  # of a sketch: 2 kB an input
NOISE = 1e-6  # share of the largest eigenvalue that is the rounding of float32 sums


@lru_cache(4)
def directions(inputs: int) -> Tensor:
    """What inputs are multiplied by, float32 [inputs, DIRECTIONS]; always the same numbers."""
    generator = torch.Generator().manual_seed(inputs)
    return torch.randn(inputs, DIRECTIONS, generator=generator)


@dataclass(frozen=True)
class Sketched:
    """The matrix mean mean^T + root root^T + diag(rest), [i, i], which is never made.

    mean, root, rest: float64 [i], [i, k] and [i].
    """

    mean: Tensor
    root: Tensor
    rest: Tensor

    @classmethod
    def of_sums(cls, rows: Tensor, x: Tensor, squares: Tensor, seen: Tensor) -> Sketched:
        """From sums over rows: x and x^2 [i], and x (x^T directions) [i, DIRECTIONS]."""
        mean, probes = x / rows, directions(len(x)).double()
        moved = seen / rows - mean.outer(mean @ probes)  # covariance @ probes
        core = probes.T @ moved
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = values > NOISE * values[-1:]
        along = moved @ (vectors[:, kept] * values[kept].rsqrt())
        variance = squares / rows - mean.square()
        return cls(mean, along, (variance - along.square().sum(1)).clamp_min(0))

    @property
    def centred(self) -> Sketched:
        return replace(self, mean=torch.zeros_like(self.mean))

    def __matmul__(self, right: Tensor) -> Tensor:
        """The product with right [i, n]."""
        found = self.root @ (self.root.T @ right) + self.rest[:, None] * right
        return found + self.mean.outer(self.mean @ right)

    def diagonal(self) -> Tensor:
        return self.root.square().sum(1) + self.rest + self.mean.square()


Moment = Tensor | Sketched  # float64 [i, i]


class Root(NamedTuple):
    """A matrix R with R R^T a moment: columns [i, k], and perhaps a diagonal beside them.

    alone: [i], the diagonal; None: there is none.
    """

    along: Tensor
    alone: Tensor | None = None

    def float(self) -> Root:
        return Root(self.along.float(), None if self.alone is None else self.alone.float())

    def seen_by(self, weight: Tensor) -> Tensor:
        """weight [n, i] @ R: [n, k] or [n, k + i]."""
        along = weight @ self.along
        return along if self.alone is None else torch.cat([along, weight * self.alone], 1)


def root_of(moment: Moment) -> Root:
    """A root of a moment, without its null space."""
    if isinstance(moment, Tensor):
        return Root(root(moment))
    return Root(torch.cat([moment.root, moment.mean[:, None]], 1), moment.rest.sqrt())
