"""Raw columns scored in one call of the engine, which reads them where a request holds them.

What is out of the ordinary it leaves alone: `Features.encode` reads everything and says what is
wrong. Ids, nulls and numbers are the same by both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embedcomp.engine.engine import BAD, NO_LIMIT, THREAD_ROWS, Engine
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.log.features import Features
from embedcomp.log.known import STRINGS, About, Known

pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclass(frozen=True)
class Taken:
    """What a message may ask for: this model and version, or none by name, and so much of it."""

    model: bytes
    version: int
    max_rows: int  # candidates
    max_ids: int  # of one feature over all candidates


@dataclass(frozen=True)
class _Columns:
    """Where a model's features are among the columns of a schema.

    columns: int32 [features], -1 where it is not there; None: some are of another type.
    types: int32 [features], places in native.COLUMNS.
    """

    schema: pa.Schema
    columns: np.ndarray | None
    types: np.ndarray


@dataclass(eq=False)
class Read:
    """A request that was read, and what is scored of it so far.

    It lies in memory of the thread that read it, until that thread reads another; others may score
    it meanwhile.

    scores: float32 [rows]; the first `done` are there.
    user: what is computed once for all rows, if anything is.
    defaulted: ids whose rows could not be had, so that the unknown one's stand for them.
    outside: rows were looked up elsewhere, and stay with this request alone.
    """

    encoded: native.Encoded
    scores: np.ndarray
    done: int = 0
    user: np.ndarray | None = None
    defaulted: int = 0
    outside: bool = False

    @property
    def rows(self) -> int:
        """Candidates."""
        return len(self.scores)

    @property
    def left(self) -> int:
        """Rows that are not scored yet."""
        return self.rows - self.done

    @property
    def joins(self) -> bool:
        """Whether it can be scored in one call with others."""
        return not (self.encoded.shares_user or self.outside)


class Requests:
    """What turns raw columns into the calls of a program; safe to use from several threads."""

    def __init__(self, engine: Engine, features: Features):
        self._engine, self._library, self.features = engine, native.needed(), features
        ids, dense = (*features.single, *features.multi), features.dense
        self._names = [*features.keys, *(number.name for number in dense)]
        given = (native.Feature * max(len(self._names), 1))()
        for struct, feature in zip(given, ids, strict=False):
            struct.known, struct.many = feature.vocabulary.known.struct, feature.multi_valued
            struct.is_user = feature.side == "user"
        for struct, number in zip(given[len(ids) :], dense, strict=False):
            number.fill(struct)
        self.seen = np.zeros((len(ids), 2), np.int64)  # ids read, and those of them unknown
        about = About(STRINGS, len(self._names), 1, 0, 0)
        names = Known.of(pa.array(self._names, pa.string()), about)
        layouts = [engine.layout((tuple(features.keys),), split=False)] * 2
        if features.user.ids:
            keys = tuple(features.item.keys), tuple(features.user.keys)
            layouts[1] = engine.layout(keys, split=True)
        self._reader = native.Reader(
            features=given,
            names=names.struct,
            single=len(features.single),
            many=len(features.multi),
            dense=len(dense),
            layout=(ctypes.c_int64 * 2)(*(layout.at[0] for layout in layouts)),
            places=(ctypes.c_int64 * 2)(*(layout.at[1] for layout in layouts)),
            seen=address(self.seen),
            groups=engine.groups,
        )
        self._reader_at = ctypes.addressof(self._reader)
        self._held = names, given, layouts
        self._seen: dict[bool, _Columns] = {}  # the latest schema of items and of users

    def score(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> np.ndarray | None:
        """Click probabilities float32 [B] of raw columns, read and scored in one call.

        Returns:
            None: they are out of the ordinary.

        Raises:
            BadRequest: a score is not finite.
        """
        held: list[object] = []
        request, rows = self._request(items, user, held), items.num_rows
        if request is None:
            return None
        alone = rows if self._engine.threads == 1 else min(rows, 2 * THREAD_ROWS - 1)
        scores, found, bad = np.empty(alone, np.float32), native.Encoded(), BAD()
        code = self._library.embedcomp_answer(
            self._engine.program_at,
            self._reader_at,
            ctypes.addressof(request),
            alone,
            address(scores),
            ctypes.addressof(found),
            bad,
        )
        if code == native.UNREAD:
            return None
        if code == native.TOO_LARGE:  # what was read stays, as long as this thread reads no other
            return self._engine.run(found.call, found.rows, shares_user=bool(found.shares_user))
        self._engine.check(code, bad)
        return scores

    def read(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> Read | None:
        """Raw columns, read to be scored; None: they are out of the ordinary."""
        held: list[object] = []
        request = self._request(items, user, held)
        return None if request is None else self._read(request)

    def read_message(self, message: bytes, taken: Taken) -> Read | None:
        """A PredictRequest's bytes, likewise; None also if it asks for more than is taken."""
        request = native.Request(
            max_rows=taken.max_rows, max_ids=taken.max_ids, version=taken.version
        )
        request.message, request.length = _address(message), len(message)
        request.model, request.model_length = _address(taken.model), len(taken.model)
        return self._read(request)

    def _read(self, request: native.Request) -> Read | None:
        found = native.Encoded()
        at = ctypes.addressof(request), ctypes.addressof(found)
        if self._library.embedcomp_read(self._reader_at, *at) == native.UNREAD:
            return None
        return Read(found, np.empty(found.rows, np.float32))

    def score_part(self, read: Read, rows: int) -> None:
        """Score the next rows of a request.

        Raises:
            BadRequest: a score is not finite.
        """
        call, last = read.encoded.call, min(read.done + rows, read.rows)
        if read.encoded.shares_user and read.user is None:
            read.user = self._engine.user_part(call)
        self._engine.score_part(call, read.user, read.done, last, read.scores)
        read.done = last

    def score_joined(self, reads: Sequence[Read]) -> None:
        """Score whole requests that can be joined, in one call.

        Raises:
            BadRequest: a score of any of them is not finite.
        """
        count, bad = len(reads), BAD()
        parts = (ctypes.c_void_p * count)(*(ctypes.addressof(read.encoded) for read in reads))
        scores = (ctypes.c_void_p * count)(*(address(read.scores) for read in reads))
        code = self._library.embedcomp_join(self._engine.program_at, parts, count, scores, bad)
        self._engine.check(code, bad)
        for read in reads:
            read.done = read.rows

    def _request(
        self, items: pa.RecordBatch, user: pa.RecordBatch | None, held: list[object]
    ) -> native.Request | None:
        """A request of batches; what it points to is put into `held`."""
        request = native.Request(max_rows=NO_LIMIT, max_ids=NO_LIMIT)
        for of_user, batch in ((False, items), (True, user)):
            if batch is None:
                continue
            found = self._columns(batch.schema, of_user)
            if found.columns is None:
                return None
            capsules = batch.__arrow_c_array__()
            held += [capsules, found]
            at = pointer(capsules[1], b"arrow_array")
            columns, types = address(found.columns), address(found.types)
            if of_user:
                request.user, request.user_columns, request.user_types = at, columns, types
            else:
                request.items, request.item_columns, request.item_types = at, columns, types
        return request

    def _columns(self, schema: pa.Schema, of_user: bool) -> _Columns:
        seen = self._seen.get(of_user)
        if seen is None or not seen.schema.equals(schema):
            seen = self._seen[of_user] = self._found(schema)
        return seen

    def _found(self, schema: pa.Schema) -> _Columns:
        columns, types = (np.full(len(self._names), -1, np.int32) for _ in range(2))
        dense = len(self._names) - len(self.features.dense)
        for place, name in enumerate(self._names):
            there = schema.get_all_field_indices(name)
            if not there:
                continue
            given = schema.field(there[0]).type
            wanted = self.features.column_type(name)
            if place < dense and pa.types.is_list(wanted) and pa.types.is_list(given):
                given, wanted = given.value_type, wanted.value_type
            known = str(given) in native.COLUMNS and (place >= dense or given == wanted)
            if len(there) > 1 or not known:
                return _Columns(schema, None, types)
            columns[place], types[place] = there[0], native.COLUMNS.index(str(given))
        return _Columns(schema, columns, types)


def _address(data: bytes) -> int | None:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
