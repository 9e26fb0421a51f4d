"""Index maps: from the ids of a table to its stored rows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

# "cut": ids from some row on share one; "map": any id reads any row
IndexForm = Literal["cut", "map"]


class Cut(nn.Module):
    """Ids from `stored - 1` on read the last stored row: a table in order of count, its tail cut.

    It keeps no numbers.
    """

    def __init__(self, stored: int):
        super().__init__()
        self.stored = stored

    def forward(self, ids: Tensor) -> Tensor:
        return ids.clamp_max(self.stored - 1)


class Map(nn.Module):
    """Row `places[i]` is read for id i.

    Args:
        ids: of the table.
        stored: rows that are kept; 1 byte an id up to 256 of them, 2 up to 32,768, else 4.
    """

    places: Tensor

    def __init__(self, ids: int, stored: int):
        super().__init__()
        self.stored = stored
        self.register_buffer("places", torch.zeros(ids, dtype=place_type(stored)))

    def fill(self, places: Tensor) -> None:
        """Take places int64 [ids]."""
        self.places = places.to(self.places.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.places.index_select(0, ids).long()


Index = Cut | Map


def place_type(stored: int) -> torch.dtype:
    """The narrowest type that can say which of `stored` rows it is."""
    if stored <= 1 << 8:
        return torch.uint8
    return torch.int16 if stored <= 1 << 15 else torch.int32
