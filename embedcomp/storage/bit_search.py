"""Rows whose bits are searched for while they train: mixed-precision embeddings (MPE).

Source: arXiv 2409.20305. Rows are in groups by count, and a softmax over numbers of bits says how a
group is read: as the mixture of its roundings, each on a grid of its own, which trains. A price on
the bytes that are expected pulls at it. Other than in the paper, groups are of one table, a step is
a group's and a column's, a price is by the byte that a group takes, and which bits are taken at
last is chosen for all layers together, from `options`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from embedcomp.storage.columns import Columns, columns_of, levels
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.rounding import fake_quantised, moved_columns
from embedcomp.storage.rows import GRID_RATE, StoredRows
from embedcomp.storage.training import Group

MOST = 6  # bits of a number
TEMPERATURE = 3e-3  # of the softmax: a step of Adam at 1e-3 moves a logit by a third


@dataclass(frozen=True)
class BitOption:
    """Bits that a group of rows can have.

    bytes: that the group's rows take.
    loss: the negative logarithm of the probability that the search gives it, in its group.
    """

    group: int
    bits: int
    bytes: int
    loss: float


class BitSearch(StoredRows):
    """Rows [rows, width] that are read, while thawed, as a mixture of roundings to 0 to MOST bits.

    A row of 0 bits is what the grid says of all rows of its group: at first their mean.

    Args:
        ends: row after the last one of each group, in order of count.
        price: of an expected byte, in log loss.
    """

    grids: Tensor  # bfloat16 [groups, MOST + 1, 3, width], as `fill` fitted them

    def __init__(self, rows: int, width: int, ends: tuple[int, ...], price: float):
        super().__init__(rows, width, "float32")
        assert ends[-1] == rows, (ends, rows)
        self.ends, self.price = ends, price
        shape = len(ends), MOST + 1, 3, width
        self.register_buffer("grids", torch.ones(shape, dtype=torch.bfloat16))
        self.grid_moves = nn.Parameter(torch.zeros(shape))
        self.logits = nn.Parameter(torch.zeros(shape[:2]))
        self._chosen: Tensor | None = None  # bits of each group, once they are told

    def fill(
        self,
        weight: Tensor | Columns,
        row_weights: Tensor | None = None,
        column_weights: Tensor | None = None,
    ) -> None:
        """Take rows, and fit their grids."""
        columns = columns_of(weight, row_weights)
        super().fill(columns, None, column_weights)
        self._fit(columns)

    def _fit(self, columns: Columns) -> None:
        """Fit a grid of each number of bits to each group."""
        every = [torch.full((self.width,), float(bits)) for bits in range(MOST + 1)]
        parts = columns.split(self._lengths)
        self.grids = torch.stack([torch.stack([p.fitted(b) for b in every]) for p in parts])

    @property
    def _lengths(self) -> list[int]:
        """Rows of each group."""
        return [last - first for first, last in pairwise((0, *self.ends))]

    @property
    def probabilities(self) -> Tensor:
        """Of each number of bits [groups, MOST + 1]."""
        if self._chosen is not None:
            return nn.functional.one_hot(self._chosen, MOST + 1).to(self.logits)
        return (self.logits / TEMPERATURE).softmax(1)

    def _rounded(self, values: Tensor, ids: Tensor | None) -> Tensor:
        ids = torch.arange(self.rows, device=values.device) if ids is None else ids
        group = torch.bucketize(ids, torch.tensor(self.ends, device=ids.device), right=True)
        grids = moved_columns(self.grids, self.grid_moves).index_select(0, group)
        scale, offset, bits = grids.unbind(2)  # each [n, MOST + 1, width]
        read = fake_quantised(values[:, None], scale, offset, levels(bits))
        return (self.probabilities.index_select(0, group)[:, :, None] * read).sum(1)

    def choose(self, bits: tuple[int, ...]) -> None:
        """From now on read each group in these bits, whatever is likely."""
        self._chosen = torch.tensor(bits, device=self.logits.device)

    def groups(self) -> list[Group]:
        return [
            Group((self.grid_moves,), "dense", GRID_RATE, l2=0.0),
            Group((self.logits,), "dense", l2=0.0),
        ]

    def read_floats(self, until: float) -> None:
        if self.thawed:
            self.rounds, self._rounds_from = torch.zeros((), dtype=torch.bool), until

    @torch.no_grad()
    def _begin_to_round(self) -> None:
        assert self.master is not None and self.rounds is not None
        self._fit(columns_of(self.master.detach(), self._fitted_by[0]))
        self.rounds.fill_(True)

    def penalty(self) -> Tensor | None:
        """The price of the bytes that are expected, once fewer bits lose something."""
        if self.reads_floats:
            return None
        return self.price * (self.probabilities * self._bytes()).sum()

    @property
    def settled(self) -> bool:
        return False

    def options(self) -> list[BitOption]:
        """Every number of bits of each group, of which one has to be taken."""
        sizes = self._bytes().tolist()
        losses = (-(self.logits.detach().double() / TEMPERATURE).log_softmax(1)).tolist()
        return [
            BitOption(group, bits, int(sizes[group][bits]), losses[group][bits])
            for group in range(len(self.ends))
            for bits in range(MOST + 1)
        ]

    def _bytes(self) -> Tensor:
        """Of the rows of each group with each number of bits [groups, MOST + 1]."""
        sizes = [row_bytes(self.width, bits) for bits in range(MOST + 1)]
        lengths = torch.tensor(self._lengths, device=self.logits.device)
        return lengths[:, None] * torch.tensor(sizes, device=lengths.device)

    @torch.no_grad()
    def taken(self, bits: tuple[int, ...]) -> StoredRows:
        """The rows with these bits by group, on the grids that were trained for them.

        Thawed, they go on from the numbers that were trained.
        """
        values = self.to_float() if self.master is None else self.master.detach()
        kind = Tiered(self.ends, tuple(row_bytes(self.width, number) for number in bits))
        moved = moved_columns(self.grids, self.grid_moves).to(self.grids.dtype)
        grid = moved[torch.arange(len(bits)), list(bits)]  # [groups, 3, width]
        found = StoredRows(self.rows, self.width, kind)
        found.fill_on(values.contiguous(), grid)
        return found


def row_bytes(width: int, bits: int) -> int:
    """Bytes of a row of so many numbers of so many bits."""
    return -(-width * bits // 8)
