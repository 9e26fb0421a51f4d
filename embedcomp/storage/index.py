"""Index maps: from the ids of a table to its stored rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from operator import add, mul
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedcomp.storage.kind import Reads
from embedcomp.storage.packing import ones
from embedcomp.storage.probes import Probes

# "cut": ids from some row on share one; "map": any id reads any row; "ranked": rows of a tier lie
# in the order of their ids; "probed": formulas say which rows an id reads, one or several
IndexForm = Literal["cut", "map", "ranked", "probed"]

BLOCK = 256  # ids that share the counts of a Ranked index, as in engine.cpp
WORDS = BLOCK // 64  # of 64 bits, that a bit of each of them takes


class Index(nn.Module):
    """What finds the stored row of an id.

    Args:
        stored: rows that there are.

    form: its name in an artifact.
    work: kind of work that finding a row is to the engine, whose time `embedcomp calibrate` finds;
        None: it takes none.
    """

    form: ClassVar[IndexForm]
    work: ClassVar[str | None] = None

    def __init__(self, stored: int):
        super().__init__()
        self.stored = stored

    @property
    def described(self) -> dict[str, Any]:
        """What an artifact says of it."""
        return {"kind": self.form, "stored": self.stored}

    def width(self, stored: int) -> int:
        """Numbers of what an id reads, of stored rows with so many."""
        return stored

    def reads(self, stored: Reads, scaled: bool) -> Reads:
        """Work of what an id reads, given that of a stored row.

        Args:
            scaled: the engine reads whole numbers.
        """
        return replace(stored, index=self.work)

    def taken(self, ids: Tensor) -> tuple[Index, Tensor]:
        """The index of some ids alone, which are numbered anew, and the stored rows that they read.

        Args:
            ids: int64 [n], ascending, each once.

        Returns:
            The index, and rows int64 ascending, each once, which are then numbered anew as well.
        """
        raise NotImplementedError(f"ids of a {self.form} index share rows by formulas")

    def gather(self, ids: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """What ids [n] read, [n, width].

        Args:
            read: stored rows by their places.
        """
        return read(self(ids))


class Cut(Index):
    """Ids from `stored - 1` on read the last stored row: a table in order of count, its tail cut.

    It keeps no numbers.
    """

    form = "cut"

    def forward(self, ids: Tensor) -> Tensor:
        return ids.clamp_max(self.stored - 1)

    def taken(self, ids: Tensor) -> tuple[Index, Tensor]:
        rows = self(ids).unique()
        return Cut(len(rows)), rows


class Map(Index):
    """Row `places[i]` is read for id i.

    Args:
        ids: of the table.
        stored: rows that are kept; 1 byte an id up to 256 of them, 2 up to 32,768, else 4.
    """

    form = "map"
    work = "mapped"
    places: Tensor

    def __init__(self, ids: int, stored: int):
        super().__init__(stored)
        self.register_buffer("places", torch.zeros(ids, dtype=place_type(stored)))

    def fill(self, places: Tensor) -> None:
        """Take places int64 [ids]."""
        self.places = places.to(self.places.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.places.index_select(0, ids).long()

    def taken(self, ids: Tensor) -> tuple[Index, Tensor]:
        rows, places = self(ids).unique(return_inverse=True)
        found = Map(len(ids), len(rows))
        found.fill(places)
        return found, rows


class Ranked(Index):
    """Rows lie tier after tier, those of a tier in the order of their ids.

    So the row of an id is the first one of its tier and as many further as the tier has ids before
    it. Tiers are kept in bit planes, and how many ids of each tier there are before a block of ids
    beside them (rank over a bit vector: Jacobson, FOCS 1989): 0.30 bytes an id with four tiers,
    0.14 with two. Where the last tier has but one row, all its ids read that.

    blocks: int32 [blocks of 256 ids, (tiers - 1) + 8 x planes], of each block the number of ids
        before it of each tier but the last, then the planes, whose first id is the lowest bit.
    firsts: int32 [tiers], the first stored row of each tier.

    Args:
        ids: of the table.
        stored: rows that are kept.
        tiers: 2 or more.
    """

    form = "ranked"
    work = "ranked"
    blocks: Tensor
    firsts: Tensor

    def __init__(self, ids: int, stored: int, tiers: int):
        super().__init__(stored)
        self.tiers, self.planes = tiers, (tiers - 1).bit_length()
        words = tiers - 1 + self.planes * BLOCK // 32
        self.register_buffer("blocks", torch.zeros(-(-ids // BLOCK), words, dtype=torch.int32))
        self.register_buffer("firsts", torch.zeros(tiers, dtype=torch.int32))

    @property
    def described(self) -> dict[str, Any]:
        return {**super().described, "tiers": self.tiers}

    def fill(self, tier_of: Tensor) -> None:
        """Take the tier of each id, int64 [ids]."""
        last = self.tiers - 1
        padded = F.pad(tier_of, (0, -len(tier_of) % BLOCK), value=last).view(-1, BLOCK)
        inside = torch.stack([(padded == tier).sum(1) for tier in range(last)], 1)
        starts = torch.cat([inside.new_zeros(1), inside.sum(0).cumsum(0)])
        assert int(starts[-1]) < self.stored, (starts, self.stored)
        bits = torch.arange(32, device=tier_of.device)
        planes = [
            (((padded >> plane) & 1).view(len(padded), -1, 32) << bits).sum(2)
            for plane in range(self.planes)
        ]
        self.blocks = torch.cat([inside.cumsum(0) - inside, *planes], 1).to(torch.int32)
        self.firsts = starts.to(torch.int32)

    def taken(self, ids: Tensor) -> tuple[Index, Tensor]:
        last = ids.new_tensor([self.stored - 1])  # so that there is a row of the last tier
        rows = torch.cat([self(ids), last]).unique()
        own = self._planes(ids)[1]
        found = Ranked(len(ids), len(rows), self.tiers)
        found.fill(self._tier(own))
        return found, rows

    def _planes(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Bit planes of the blocks of ids, int64 [n, planes, WORDS], and the bits of each id in
        them, [n, planes]."""
        bits = self.blocks.index_select(0, ids // BLOCK)[:, self.tiers - 1 :]
        planes = bits.clone(memory_format=torch.contiguous_format).view(torch.int64)
        planes = planes.unflatten(1, (-1, WORDS))
        at = (ids % BLOCK // 64)[:, None, None].expand(-1, self.planes, 1)
        return planes, planes.gather(2, at)[..., 0] >> (ids % 64)[:, None] & 1

    def _tier(self, own: Tensor) -> Tensor:
        """Tiers int64 [n] of ids by their bits [n, planes]."""
        return (own << torch.arange(self.planes, device=own.device)).sum(1)

    def forward(self, ids: Tensor) -> Tensor:
        read = self.blocks.index_select(0, ids // BLOCK)
        planes, own = self._planes(ids)
        word, bit, tier = ids % BLOCK // 64, ids % 64, self._tier(own)
        words = torch.arange(WORDS, device=ids.device)
        earlier = torch.where(words < word[:, None], -1, 0)
        same = torch.where(words == word[:, None], (1 << bit[:, None]) - 1, earlier)
        for plane in range(self.planes):  # ids of the block that come before it in the same tier
            same = same & (planes[:, plane] ^ (own[:, plane, None] - 1))
        counted = read[:, : self.tiers - 1].long()
        others = ids // BLOCK * BLOCK - counted.sum(1)  # ids of the last tier before the block
        before = torch.cat([counted, others[:, None]], 1).gather(1, tier[:, None])[:, 0]
        rows = self.firsts.index_select(0, tier) + before + ones(same).sum(1)
        return rows.clamp_max(self.stored - 1)


class Probed(Index):
    """Every id reads a stored row by each of some formulas, and they are combined.

    It keeps no numbers. Where tables read the same stored rows, each has formulas of its own.

    Args:
        stored: rows that are kept.
    """

    form = "probed"
    work = "probed"

    def __init__(self, stored: int, probes: Probes):
        super().__init__(stored)
        assert probes.end <= stored, (probes, stored)
        self.probes = probes

    @property
    def described(self) -> dict[str, Any]:
        return {**super().described, **self.probes.described}

    def width(self, stored: int) -> int:
        return self.probes.width(stored)

    def reads(self, stored: Reads, scaled: bool) -> Reads:
        return self.probes.reads(stored, scaled)

    def forward(self, ids: Tensor) -> Tensor:
        return self.probes.rows(ids)

    def gather(self, ids: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        rows = self(ids)  # [n, probes]
        values = read(rows.view(-1)).unflatten(0, rows.shape)  # [n, probes, width]
        if not self.probes.mixes:
            return values.flatten(1)
        together = reduce(_COMBINED[self.probes.combine], values.unbind(1))
        if not self.probes.own:
            return together
        return torch.where((ids < self.probes.own)[:, None], values[:, 0], together)


_COMBINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": add, "multiply": mul}


def place_type(stored: int) -> torch.dtype:
    """The narrowest type that can say which of `stored` rows it is."""
    if stored <= 1 << 8:
        return torch.uint8
    return torch.int16 if stored <= 1 << 15 else torch.int32


def probes_of(index: Index | None) -> dict[str, Any] | None:
    """The formulas of an index, as an artifact describes them; None: it has none."""
    return index.probes.described if isinstance(index, Probed) else None


def index_of(ids: int, described: Mapping[str, Any]) -> Index:
    """An empty index of a table with these ids, as an artifact describes it."""
    values = dict(described)
    form = values.pop("kind")
    if form == "probed":
        return Probed(values.pop("stored"), Probes.of(values))
    if form == "cut":
        return Cut(**values)
    return Map(ids, **values) if form == "map" else Ranked(ids, **values)
