"""Storages whose rows are codes into codebooks: their names, and which columns a code stands for.

product4x8      a code of 8 bits for each of 4 groups of columns
clustered3      a code of 3 bits a value, into one codebook for the whole matrix
sparse2x256     2 of 256 atoms a row, each times a number
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from embedcomp.errors import BadSettings

KINDS = ("product", "clustered", "sparse")
BITS = {"product": (4, 8), "clustered": (2, 3, 4, 8)}
MOST_ATOMS = 256  # a number of one takes a byte
LARGEST = 127  # coefficient of an atom, as a signed byte
_NAME = re.compile(rf"({'|'.join(KINDS)})(?:(\d+)x)?(\d+)")


@dataclass(frozen=True)
class Codes:
    """What a storage's name says.

    parts: product: groups of columns; sparse: atoms of a row; clustered: 0, a code is one value.
    words: of a codebook, or atoms of a dictionary.
    """

    kind: str
    parts: int
    words: int

    @property
    def name(self) -> str:
        size = self.words if self.kind == "sparse" else self.bits
        return f"{self.kind}{self.parts}x{size}" if self.parts else f"{self.kind}{size}"

    @property
    def bits(self) -> int:
        return (self.words - 1).bit_length()

    def edges(self, width: int) -> list[int]:
        """First column of each group and the width; no group is empty, so there may be fewer."""
        groups = min(self.parts, width) if self.kind == "product" else width
        return [width * group // max(groups, 1) for group in range(groups + 1)]


@cache
def parsed(storage: str) -> Codes | None:
    """What the name says; None: another kind of storage.

    Raises:
        BadSettings: there is no such storage of codes.
    """
    if not storage.startswith(KINDS):
        return None
    found = _NAME.fullmatch(storage)
    if found is not None:
        kind, parts, size = found[1], int(found[2] or 0), int(found[3])
        if kind in BITS and size in BITS[kind] and bool(parts) == (kind == "product"):
            return Codes(kind, parts, 1 << size)
        if kind == "sparse" and 0 < parts <= size <= MOST_ATOMS:
            return Codes(kind, parts, size)
    raise BadSettings(
        f"there is no storage {storage!r}; product codes have 4 or 8 bits (product4x8), clustered "
        f"values 2, 3, 4 or 8 (clustered4), and a dictionary at most {MOST_ATOMS} atoms, no fewer "
        "than a row takes (sparse2x256)"
    )
