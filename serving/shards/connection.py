"""What a front and a shard tell each other, over a socket that carries one question at a time.

A message is eight bytes, its kind and the bytes of its body (two uint32, little-endian), and the
body. The front asks, and the shard gives each question one answer, in turn.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import suppress
from enum import IntEnum
from typing import Any

import pyarrow as pa

HEAD = struct.Struct("<II")
MOST_BYTES = 1 << 30  # of a body; more is what nobody sends
KEPT_ALIVE = (  # a peer whose machine is gone without a word is noticed after a minute and a half
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class Kind(IntEnum):
    """What a message is, and what its body holds."""

    DESCRIBE = 1  # nothing; the answer says what the shard is
    LOAD = 2  # JSON, {model, version}; answered as DESCRIBE once the version is open
    STREAM = 3  # JSON, {model, version, digest}: what later POOLs are of; the answer is empty
    POOL = 4  # which rows are asked for, and the answer their sums (kernels/slots.h)
    ANSWER = 5
    REFUSED = 6  # a sentence; the connection is closed after it


KINDS = {kind.value: kind for kind in Kind}


class Closed(ConnectionError):
    """The other side has closed the connection, and there is no message before that."""


class WrongPeer(ConnectionError):
    """Who is on the other side does not speak as fronts and shards do."""


class Refused(ConnectionError):
    """What a shard does not do, in its words."""


class Connection:
    """One side of a connection; for one thread at a time."""

    def __init__(self, taken: socket.socket):
        self._socket = taken
        with suppress(OSError):  # who came may be gone, which is noticed soon enough
            for level, name, value in KEPT_ALIVE:
                taken.setsockopt(level, name, value)

    def send(self, kind: Kind, body: Any = b"", due: float | None = None) -> None:
        """Send a message.

        Args:
            body: bytes, or what has them as a buffer.
            due: until when (time.monotonic); None: however long it takes.

        Raises:
            TimeoutError: it is not sent by then.
            OSError: the connection is over.
        """
        self._wait_until(due)
        with memoryview(body) as view:
            self._socket.sendall(b"".join((HEAD.pack(kind, view.nbytes), view)))

    def receive(self, due: float | None = None) -> tuple[Kind, pa.Buffer]:
        """The next message.

        Raises:
            TimeoutError: it is not here by then (time.monotonic).
            Closed: there is none.
            WrongPeer: it is no message.
            OSError: the connection is over.
        """
        head = bytearray(HEAD.size)
        self._fill(memoryview(head), due, ends=True)
        number, size = HEAD.unpack(head)
        kind = KINDS.get(number)
        if kind is None or size > MOST_BYTES:
            raise WrongPeer("what it says is no message of a front or a shard")
        body = pa.allocate_buffer(size)
        self._fill(memoryview(body), due)
        return kind, body

    def close(self) -> None:
        """Close it, also where another thread waits for a message, which then has an error."""
        with suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _fill(self, view: memoryview, due: float | None, ends: bool = False) -> None:
        """Fill it with what comes.

        Args:
            ends: the other side may close the connection before the first byte.
        """
        done = 0
        while done < len(view):
            self._wait_until(due)
            got = self._socket.recv_into(view[done:])
            if not got:
                if ends and not done:
                    raise Closed("it closed the connection")
                raise WrongPeer("it closed the connection in the middle of a message")
            done += got

    def _wait_until(self, due: float | None) -> None:
        if due is None:
            self._socket.settimeout(None)
            return
        left = due - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for it is over")
        self._socket.settimeout(left)


def reach(address: str, due: float, tls: ssl.SSLContext | None = None) -> Connection:
    """A connection to whoever listens at HOST:PORT.

    Args:
        tls: what it goes by; None: plain text.

    Raises:
        OSError: nobody does, or not until then (time.monotonic).
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    taken = socket.create_connection((host, int(port)), max(due - time.monotonic(), 0.001))
    if tls is not None:
        try:
            taken = tls.wrap_socket(taken, server_hostname=host)  # within the same time again
        except BaseException:
            taken.close()
            raise
    return Connection(taken)


def asked(connection: Connection, kind: Kind, body: Any, due: float) -> pa.Buffer:
    """The answer to a question.

    Raises:
        Refused: the shard says why not.
        OSError: there is no answer until then (time.monotonic).
    """
    connection.send(kind, body, due)
    return answer(connection, due)


def answer(connection: Connection, due: float) -> pa.Buffer:
    """The answer to a question that was sent; raises as `asked` does."""
    kind, body = connection.receive(due)
    if kind == Kind.REFUSED:
        raise Refused(body.to_pybytes().decode(errors="replace"))
    if kind != Kind.ANSWER:
        raise WrongPeer(f"it answers with {kind.name}")
    return body
