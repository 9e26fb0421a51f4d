"""Low-rank layers whose ranks lie in order of worth, so that any first ones are a smaller layer.

Training sees to the order (Maestro, arXiv 2308.14929): in a second pass of each step one layer
keeps a drawn number of its first ranks, and a group lasso pulls at the tails. Decoders of such
tables are not folded into the layers that read them: a lower rank would be other columns of these
layers' weights, in whatever form they are stored. The engine folds them when it is opened.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from embedcomp.modules.linear import LowRankLinear
from embedcomp.modules.table import CompressedBag, CompressedEmbedding, CompressedTable
from embedcomp.storage.decode import Affine
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.training import Progress, Trains

DEAD = 1e-5  # worth below which a rank is dropped


class Ordered(Trains):
    """What such layers have in common.

    lasso: log loss that ranks of worth 1 cost, once for each tail that they are in.
    """

    lasso = 0.0
    prefix: int | None = None  # ranks that count at present; None: all

    @property
    @abstractmethod
    def rank(self) -> int: ...

    @abstractmethod
    def factors(self) -> tuple[StoredRows, Tensor]:
        """The codes' rows [n, rank], and what each rank puts out [rank, outputs]."""

    def extra_repr(self) -> str:
        return f"lasso={self.lasso}"

    @property
    def narrows(self) -> bool:
        return self.rank > 1

    @contextmanager
    def narrowed(self, at: Progress) -> Iterator[None]:
        self.prefix = int(torch.randint(1, self.rank, (), generator=at.drawn()))
        try:
            yield
        finally:
            self.prefix = None

    def kept(self, codes: Tensor) -> Tensor:
        """Codes [..., rank] without those that do not count at present."""
        if self.prefix is None:
            return codes
        return codes * (torch.arange(self.rank, device=codes.device) < self.prefix)

    def worth(self) -> Tensor:
        """Root mean square of each rank's codes times the norm of what it puts out [rank].

        The codes are taken as given. Adam would move all the rows that a step does not look up by
        its whole rate, however small a gradient they had of this alone.
        """
        rows, out = self.factors()
        codes = rows.to_float() if rows.master is None else rows.master
        return codes.detach().square().mean(0).sqrt() * out.norm(dim=1)

    def penalty(self) -> Tensor | None:
        """The lasso times the norms of the worths of all tails, a tail from each rank on."""
        if not self.lasso:
            return None
        tails = self.worth().square().flip(0).cumsum(0)
        norms = torch.where(tails > 0, tails, 1.0).sqrt() * (tails > 0)  # 0 has no gradient
        return self.lasso * norms.sum()

    @torch.no_grad()
    def alive(self) -> int:
        """Ranks up to the last one that is not dead, at least 1."""
        living = torch.nonzero(self.worth() >= DEAD)
        return int(living.max()) + 1 if len(living) else 1


class OrderedTable(Ordered, CompressedTable):
    """Codes in order and an affine decoder."""

    @property
    def rank(self) -> int:
        return self.stored.width

    def factors(self) -> tuple[StoredRows, Tensor]:
        assert isinstance(self.decode, Affine)
        return self.stored, self.decode.matrix()

    def decoded(self, codes: Tensor, constant: Tensor) -> Tensor:
        return super().decoded(self.kept(codes), constant)


class OrderedBag(OrderedTable, CompressedBag):
    """Stands for an nn.EmbeddingBag."""

    folds = False


class OrderedEmbedding(OrderedTable, CompressedEmbedding):
    """Stands for an nn.Embedding."""


class OrderedLinear(Ordered, LowRankLinear):
    """Two factors whose ranks are in order."""

    @property
    def rank(self) -> int:
        return self.first.width

    def factors(self) -> tuple[StoredRows, Tensor]:
        return self.first, self.second.to_float().T

    def codes(self, x: Tensor) -> Tensor:
        return self.kept(super().codes(x))
