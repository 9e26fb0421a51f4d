"""gRPC calls of prepared bytes over one HTTP/2 connection (RFC 9113), many at a time.

gRPC's own Python client takes about as long for a call as the server does, so that on a core of its
own it could neither fill a server nor go on sending while a server is late. Here a call is one
write and one read, and nothing waits. Headers are indexed after the first call, as gRPC's clients
do it; headers of answers come without an index, since a table of none is asked for, so that the
status is plain text in them.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import grpc

OK, LOST, NOT_TAKEN = "OK", "LOST", "NOT_TAKEN"  # of calls on a connection that ended
STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
TABLE_SIZE, PUSH, INITIAL_WINDOW, FRAME_SIZE = 1, 2, 4, 5  # settings
ROOM = (1 << 31) - 1  # the largest window: answers are never held back
DEFAULT_ROOM, DEFAULT_FRAME = 65_535, 16_384
READ = 1 << 18
STATUS = b"grpc-status"


@dataclass(slots=True)
class Answer:
    """What became of a call: its status, and the message where that is OK."""

    call: Any
    status: str
    message: bytes = b""


@dataclass(slots=True)
class _Stream:
    call: Any
    left: memoryview  # of the request
    room: int
    got: bytearray = field(default_factory=bytearray)


class Connection:
    """A connection to HOST:PORT for calls of one method, as /package.Service/Method.

    `usable` is False once the server wants no more calls on it or it is gone.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, target: str, method: str, timeout_s: int = 10):
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.usable, self.open = True, True
        self._streams: dict[int, _Stream] = {}
        self._waiting: deque[int] = deque()  # streams whose request is not sent whole
        self._next, self._out, self._in = 1, bytearray(), bytearray()
        self._room, self._first_room, self._frame = DEFAULT_ROOM, DEFAULT_ROOM, DEFAULT_FRAME
        self._received = 0
        self._first, self._later = _headers(target, method, timeout_s)
        settings = struct.pack(">HIHIHI", TABLE_SIZE, 0, PUSH, 0, INITIAL_WINDOW, ROOM)
        opened = struct.pack(">I", ROOM - DEFAULT_ROOM)
        self._write(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW, 0, 0, opened))
        self.socket.setblocking(False)

    def __len__(self) -> int:
        """Calls in flight."""
        return len(self._streams)

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out)

    def send(self, message: bytes, call: Any) -> None:
        """Send a prepared message; `call` comes back with its answer."""
        stream, self._next = self._next, self._next + 2
        head = self._first if stream == 1 else self._later
        body = memoryview(b"\0" + struct.pack(">I", len(message)) + message)
        self._streams[stream] = _Stream(call, body, self._first_room)
        self._out += _frame(HEADERS, END_HEADERS, stream, head)
        self._waiting.append(stream)
        self._fill()
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes."""
        if not self._out:
            return
        try:
            sent = self.socket.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self.usable = False  # the next read says what is lost
            self._out.clear()
            return
        del self._out[:sent]

    def read(self) -> list[Answer]:
        """Answers that have come; all that were in flight where the connection is gone."""
        try:
            data = self.socket.recv(READ)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return self._ended()
        self._in += data
        found: list[Answer] = []
        at, end = 0, len(self._in)
        while end - at >= 9:
            size = int.from_bytes(self._in[at : at + 3])
            if end - at < 9 + size:
                break
            kind, flags = self._in[at + 3], self._in[at + 4]
            stream = int.from_bytes(self._in[at + 5 : at + 9]) & ROOM
            self._take(kind, flags, stream, bytes(self._in[at + 9 : at + 9 + size]), found)
            at += 9 + size
        del self._in[:at]
        if self._waiting:
            self._fill()
        self.flush()
        return found

    def close(self) -> None:
        self.usable = self.open = False
        self.socket.close()

    def _take(
        self, kind: int, flags: int, stream: int, payload: bytes, found: list[Answer]
    ) -> None:
        """Act on a frame."""
        one = self._streams.get(stream)
        if kind == DATA:
            self._received += len(payload)
            if self._received > 1 << 29:
                self._out += _frame(WINDOW, 0, 0, struct.pack(">I", self._received))
                self._received = 0
            if one is not None:
                one.got += payload[1 : -payload[0] or None] if flags & PADDED else payload
        elif kind == HEADERS and flags & END_STREAM and one is not None:
            found.append(Answer(one.call, _status(payload), bytes(one.got[5:])))
            del self._streams[stream]
        elif kind == RESET and one is not None:
            found.append(Answer(one.call, f"RESET_{int.from_bytes(payload)}"))
            del self._streams[stream]
        elif kind == SETTINGS and not flags & ACK:
            self._settle(payload)
        elif kind == PING and not flags & ACK:
            self._out += _frame(PING, ACK, 0, payload)
        elif kind == WINDOW:
            if stream == 0:
                self._room += int.from_bytes(payload)
            elif one is not None:
                one.room += int.from_bytes(payload)
        elif kind == GOAWAY:
            self.usable = False
            last = int.from_bytes(payload[:4]) & ROOM
            for number in [number for number in self._streams if number > last]:
                found.append(Answer(self._streams.pop(number).call, NOT_TAKEN))

    def _settle(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == INITIAL_WINDOW:
                for one in self._streams.values():
                    one.room += value - self._first_room
                self._first_room = value
            elif key == FRAME_SIZE:
                self._frame = min(value, 1 << 20)
        self._out += _frame(SETTINGS, ACK, 0, b"")

    def _fill(self) -> None:
        """Put what the server's windows have room for into the frames to be written."""
        for _ in range(len(self._waiting)):
            stream = self._waiting.popleft()
            one = self._streams.get(stream)
            if one is None:
                continue  # answered before all of it was sent
            while one.left and (size := min(len(one.left), one.room, self._room, self._frame)) > 0:
                ends = END_STREAM if size == len(one.left) else 0
                self._out += _frame(DATA, ends, stream, one.left[:size])
                one.left = one.left[size:]
                one.room -= size
                self._room -= size
            if one.left:
                self._waiting.append(stream)

    def _ended(self) -> list[Answer]:
        self.close()
        found = [Answer(one.call, LOST) for one in self._streams.values()]
        self._streams.clear()
        return found

    def _write(self, data: bytes) -> None:
        self.socket.sendall(data)


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    return struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream) + payload


def _headers(target: str, method: str, timeout_s: int) -> tuple[bytes, bytes]:
    """A request's headers (RFC 7541): those of the first call put all of them into the table."""
    added = (
        (b"\x44", method.encode()),  # :path
        (b"\x41", target.encode()),  # :authority
        (b"\x5f", b"application/grpc"),  # content-type
        (b"\x40\x02te", b"trailers"),
        (b"\x40\x0cgrpc-timeout", f"{timeout_s}S".encode()),
    )
    assert all(len(value) < 127 for _, value in added), "a length of one byte"
    always = b"\x83\x86"  # POST, http
    first = always + b"".join(name + bytes([len(value)]) + value for name, value in added)
    newest = 62
    return first, always + bytes(0x80 | newest + i for i in reversed(range(len(added))))


def _status(block: bytes) -> str:
    at = block.find(STATUS)
    if at < 0:
        return grpc.StatusCode.UNKNOWN.name  # in Huffman's code, as no server here writes it
    at += len(STATUS)
    number = block[at + 1 : at + 1 + block[at]]
    return STATUSES.get(int(number), "UNKNOWN") if number.isdigit() else "UNKNOWN"
