"""Tables of an artifact that is not cut, whose rows fbgemm looks up in the same process."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from embedcomp.engine.standalone import Standalone
from embedcomp.engine.tensors import TableRows
from embedcomp.kernels import routing
from embedcomp.kernels.routing import SLOTS
from embedcomp.sharding.by_fbgemm import MOST_IDS, Fbgemm, Rows, reads
from embedcomp.sharding.cutting import CutTable
from embedcomp.sharding.pooled import Pooled
from embedcomp.storage import kinds


class WholeTables:
    """Tables of an artifact that is not cut, asked by the way that shards are (sharding/front.py).

    cut: them as a front knows them.
    """

    number = 1

    def __init__(self, alone: Standalone, held: Mapping[str, np.ndarray]):
        assert alone.graph is not None
        self.owner = np.zeros(SLOTS, np.int32)
        names = dict.fromkeys(feature.table for feature in alone.graph.features)
        self._rows = {name: rows for name in names if (rows := _whole(name, alone, held))}
        self.cut = {
            name: CutTable(
                ids=alone.tables[name].rows, width=rows.width, near=0, unknown=-1, bytes=rows.nbytes
            )
            for name, rows in self._rows.items()
        }

    def open(self, located: Mapping[str, TableRows]) -> None:
        """Have fbgemm look them up.

        Args:
            located: them as the engine finds them, with the maps from ids to rows.

        Raises:
            BadSettings: torch or fbgemm is missing.
        """
        tables = (routing.Slotted * max(len(self._rows), 1))()
        self._held: list[Any] = [located]
        for struct, name in zip(tables, self._rows, strict=False):
            slot = (ctypes.c_void_p * 1)(ctypes.addressof(located[name].stored))
            struct.slots, struct.number = ctypes.addressof(slot), 1
            struct.num_ids, struct.width = self.cut[name].ids, self.cut[name].width
            self._held.append(slot)
        self._pooled = Pooled(tables, len(self._rows), 0)
        self._pooled.have(Fbgemm(dict(enumerate(self._rows.values()))))

    @property
    def resident(self) -> dict[str, int]:
        """Bytes that are read of each table."""
        return {name: rows.nbytes for name, rows in self._rows.items()}

    @property
    def copied_bytes(self) -> int:
        """Of rows in memory beside those in the file."""
        assert self._pooled.fbgemm is not None
        return self._pooled.fbgemm.copied_bytes

    def ask(self, messages: Sequence[pa.Buffer | None]) -> Sequence[pa.Buffer | None]:
        return [
            None if one is None else pa.py_buffer(self._pooled.pool(np.frombuffer(one, "<u4")))
            for one in messages
        ]


def _whole(name: str, alone: Standalone, held: Mapping[str, np.ndarray]) -> Rows | None:
    """The rows of a table, where fbgemm reads them; None: the engine does."""
    table, stored = alone.tables[name], alone.stored.get(f"{name}.stored")
    if table.probes is not None or table.rows > MOST_IDS:
        return None
    if not table.stored:
        return Rows(kinds.named("float32"), table.dim, (held[f"{name}.weight"],), in_place=True)
    assert stored is not None
    if not reads(stored.kind):
        return None
    return Rows(stored.kind, stored.width, (held[f"{name}.stored.stored"],), in_place=True)
