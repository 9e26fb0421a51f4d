"""The rows of some slots, pooled for whoever asks: what a shard holds of an artifact."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from embedcomp.engine.tensors import StoredMatrix, Table, Tensors
from embedcomp.errors import BadArtifact, EmbedcompError
from embedcomp.kernels import native, routing
from embedcomp.kernels.routing import SLOTS
from embedcomp.sharding.by_fbgemm import Fbgemm, Rows, reads
from embedcomp.sharding.cutting import SHARED, Cutting, in_words, slot_file
from embedcomp.sharding.pooled import NotPooled, Pooled
from embedcomp.storage import kinds
from embedcomp.storage.kind import Located
from embedcomp.support.mapped import mapped, mapped_with_metadata

NO_MESSAGE = "the message is not what a front sends, or ends too early"


class WrongMessage(EmbedcompError):
    """A message that asks for rows which are not here, or that is none."""


class OtherVersion(WrongMessage):
    """A message that asks for another version's rows."""


class HeldSlots:
    """Some slots of one version, where they lie in their files; safe to use from several threads.

    Args:
        lookups: "engine", or "fbgemm" where it has the rows, of which it makes a copy in memory.

    Raises:
        BadSettings: fbgemm is asked for and missing.
        BadArtifact: a file is missing, or not the one that was written.
        NotBuilt: the compiled engine is missing.
    """

    def __init__(
        self, cutting: Cutting, version: int, slots: Iterable[int], lookups: str = "engine"
    ):
        self.cutting, self.version, self.slots = cutting, version, tuple(slots)
        self._names = list(cutting.tables)
        self._shared = mapped(cutting.opened(SHARED))
        self._at = {name: (ctypes.c_void_p * SLOTS)() for name in self._names}
        self._held: list[Any] = [self._shared]
        self._like: dict[str, Located] = {}
        self._by_fbgemm: dict[str, Rows] = {}  # tables that it could look up, by slot
        self.bytes = 0  # of the files
        for slot in self.slots:
            self._open(slot)
        self._tables = (routing.Slotted * max(len(self._names), 1))()
        for struct, (name, table) in zip(self._tables, cutting.tables.items(), strict=False):
            struct.slots, struct.number = ctypes.addressof(self._at[name]), SLOTS
            struct.num_ids, struct.width = table.ids, table.width
        self._pooled = Pooled(self._tables, len(self._names), version)
        if lookups == "fbgemm":
            rows = {self._names.index(name): rows for name, rows in self._by_fbgemm.items()}
            self._pooled.have(Fbgemm(rows), self.slots)

    def pool(self, message: Any) -> np.ndarray:
        """The answer to a message (kernels/slots.h), float32: by part and bag, width + 1 numbers.

        Args:
            message: a buffer of 32-bit words.

        Raises:
            OtherVersion, WrongMessage: it asks for what is not here, or is none.
        """
        if memoryview(message).nbytes % 4:
            raise WrongMessage(NO_MESSAGE)
        try:
            return self._pooled.pool(np.frombuffer(message, "<u4"))
        except NotPooled as error:
            raise self._wrong(error.code, error.bad) from None

    def _wrong(self, code: int, bad: Sequence[int]) -> WrongMessage:
        if code == routing.OTHER_VERSION:
            return OtherVersion(
                f"version {bad[0]} is asked for, but this is version {self.version}"
            )
        if code == routing.NO_SUCH_TABLE:
            return WrongMessage(f"table {bad[0]} is asked for, of {len(self._names)}")
        if code == routing.NO_SUCH_ID:
            return WrongMessage(f"table {self._names[bad[0]]} has no id {bad[1]:,}")
        if code == routing.NOT_HERE:
            return WrongMessage(
                f"slot {bad[1]} is asked for, but this shard holds {in_words(self.slots)}"
            )
        return WrongMessage(NO_MESSAGE)

    def _open(self, slot: int) -> None:
        file = self.cutting.opened(slot_file(slot))
        held, said = mapped_with_metadata(file)
        self.bytes += file.stat().st_size
        try:
            for name, part in json.loads(said["tables"]).items():
                self._at[name][slot] = self._placed(name, part, held)
        except (KeyError, TypeError, ValueError) as error:
            raise BadArtifact(f"{file} does not hold its slot: {error}") from error
        self._held.append(held)

    def _placed(self, name: str, part: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> int:
        """Where the engine finds the rows of a table in one slot."""
        if part["stored"] is None:
            what = StoredMatrix(
                kind=kinds.named("float32"), rows=part["ids"], width=self.cutting.tables[name].width
            )
            own = {"stored": held[f"{name}.weight"]}
        else:
            what = StoredMatrix.from_dict(part["stored"])
            prefix = f"{name}.stored."
            every = {**self._shared, **held}
            own = {n.removeprefix(prefix): a for n, a in every.items() if n.startswith(prefix)}
        if reads(what.kind):
            before = self._by_fbgemm.get(name)
            arrays = (*(before.arrays if before else ()), own["stored"])
            self._by_fbgemm[name] = Rows(what.kind, what.width, arrays)
        like = self._like.get(name)
        if like is None:
            found = self._like[name] = what.kind.located(own, what.rows, what.width, -1)
        else:
            found = what.kind.located_like(like, own, what.rows, what.width)
        rows = native.Stored.from_buffer_copy(found.rows)
        rows.num_ids = part["ids"]
        table = Table(rows=part["ids"], dim=what.width, pooling="sum", stored=True)
        _, kept = Tensors(held, {}, {name: table}).index(name, rows)
        self._held += [rows, found, kept]
        return ctypes.addressof(rows)
