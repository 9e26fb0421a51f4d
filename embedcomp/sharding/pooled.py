"""Messages that ask for rows, and their answers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from embedcomp.kernels import routing
from embedcomp.kernels.native import address
from embedcomp.sharding.by_fbgemm import Fbgemm


class NotPooled(Exception):
    """A message that has no answer; whoever knows what it is about says why.

    code: of kernels/slots.h.
    bad: two numbers, which table and what of it.
    """

    def __init__(self, code: int, bad: ctypes.Array[ctypes.c_int64]):
        super().__init__(code, *bad)
        self.code, self.bad = code, tuple(bad)


class Pooled:
    """Answers messages (kernels/slots.h): by fbgemm where it has the rows, else by the engine."""

    def __init__(self, tables: ctypes.Array[routing.Slotted], count: int, version: int):
        self._library, self._version = routing.library(), version
        self._tables, self._count = tables, count
        self._at = ctypes.addressof(tables)
        self.fbgemm: Fbgemm | None = None
        self._firsts: list[np.ndarray] = []

    def have(self, fbgemm: Fbgemm, slots: Sequence[int] = (0,)) -> None:
        """Have fbgemm look up its tables, whose arrays are of these slots."""
        for number, table in fbgemm.tables.items():
            struct = self._tables[number]
            firsts = np.zeros(struct.number, np.int64)
            firsts[list(slots)] = table.firsts
            struct.firsts, struct.given = address(firsts), table.given
            self._firsts.append(firsts)
        self.fbgemm = fbgemm

    def pool(self, message: np.ndarray) -> np.ndarray:
        """The answer to a message, float32: by part and bag, width + 1 numbers.

        Raises:
            NotPooled: it asks for what is not here, or is no message.
        """
        bad, at, words = (ctypes.c_int64 * 2)(), address(message), len(message)
        numbers = self._library.embedcomp_asked(
            self._at, self._count, at, words, self._version, bad
        )
        if numbers < 0:
            raise NotPooled(-numbers, bad)
        given, given_at, width = None, None, 0
        if self.fbgemm is not None:
            asked = routing.Numbered()
            code = self._library.embedcomp_number(self._at, at, words, ctypes.addressof(asked), bad)
            if code:
                raise NotPooled(code, bad)
            if asked.parts and asked.bags:
                given = self.fbgemm.look_up(asked)
                given_at, width = given.data_ptr(), given.shape[1]
        found = np.empty(numbers, np.float32)
        code = self._library.embedcomp_pool(
            self._at, at, words, given_at, width, address(found), bad
        )
        if code:
            raise NotPooled(code, bad)
        return found
