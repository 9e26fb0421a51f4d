"""Who waits for a call's scores, and what is noted of the call until its end."""

from __future__ import annotations

import random
from collections.abc import Callable

import grpc

from embedcomp.serving.served import Served, Work

ID_CHARS = 128  # of an id that a caller gives; a longer one is as none


class Caller:
    """Who waits for a call's scores; this one waits to the end.

    id: what it calls the call; empty: nothing.
    served: the version that answers; None: it did not come to that.
    read: reads the request for a version; None: likewise.
    rows: candidates; None: they could not be read.
    came: when they were there to be scored, by time.perf_counter; 0.0: they never were.
    queued_s, scored_s: seconds until their turn came, and until they had scores.
    defaulted: ids whose rows could not be had, so that the unknown one's stood for them.
    code: what became of the call; said: why it was refused, and plain: that without its values.
    """

    served: Served | None = None
    read: Callable[[Served], Work] | None = None
    rows: int | None = None
    defaulted = 0
    came = queued_s = scored_s = 0.0
    code: grpc.StatusCode = grpc.StatusCode.OK
    said = plain = id = ""

    @property
    def key(self) -> bytes:
        """What calls are told apart by where some of them are answered otherwise."""
        return b""

    def is_active(self) -> bool:
        """Whether it still waits."""
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back when it waits no more, its deadline included; False: it waits no more."""
        return True

    @property
    def request_id(self) -> str:
        """What the call is called; one that has no name is given one."""
        if not self.id:
            self.id = f"{random.getrandbits(64):016x}"
        return self.id

    def name(self, given: object) -> None:
        """Call the call so, unless it has a name or this cannot stand in a header and a log."""
        if (
            not self.id
            and isinstance(given, str)
            and len(given) <= ID_CHARS
            and given.isascii()
            and given.isprintable()
        ):
            self.id = given

    def refuse(self, code: grpc.StatusCode, said: str, plain: str) -> None:
        """Note that the call is not answered, and why."""
        self.code, self.said, self.plain = code, said, plain
