"""One shard as a front sees it: streams that are kept open, and whether it answers."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedcomp.errors import EmbedcompError
from embedcomp.serving.shards.connection import Connection, Kind, answer, asked, reach

CALL_S = 5.0  # that a shard may take to tell what it is
LOAD_S = 600.0  # and to open a version, whose files it checks
AGAIN_S = (0.05, 2.0)  # from one try to reach a shard to the next, at first and at most

logger = logging.getLogger(__name__)


Where = Callable[[], str]  # HOST:PORT where a shard is now, or ShardFailed if nobody knows
Tls = Callable[[], ssl.SSLContext]  # what connections go by now, or BadSettings


class ShardFailed(EmbedcompError):
    """A shard does not answer, or not what it was asked for."""


@dataclass(frozen=True)
class Asked:
    """What streams are of: one version of a model, as it was cut."""

    model: str
    version: int
    digest: str

    @property
    def body(self) -> bytes:
        return json.dumps(vars(self)).encode()


@dataclass(frozen=True)
class Described:
    """What a shard says of itself."""

    model: str
    slots: tuple[int, ...]


class Replica:
    """A shard, for one version of a model; safe to use from several threads.

    Streams that no call uses wait for the next one. One that fails takes all of them with it, and a
    thread tries to reach the shard again and again, which has to open the version first. Where it
    is, is asked anew each time: one that was started again may be elsewhere. So are certificates,
    which may have been renewed.

    Args:
        tls: what connections go by; None: plain text.
    """

    def __init__(self, where: Where, of: Asked, tls: Tls | None = None):
        self.address = "that was never found"  # where it was when it was last asked for
        self._where, self._of, self._tls = where, of, tls
        self._context: ssl.SSLContext | None = None
        self.live = False
        self.described: Described | None = None  # None: it has never answered
        self._idle: deque[Connection] = deque()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._trying: threading.Thread | None = None
        self.why = "it has not been asked yet"

    def connect(self) -> Described:
        """Reach the shard, have it open the version, and keep a stream to it.

        Raises:
            ShardFailed: it does not answer, or does not have the version.
        """
        self.address = self._where()
        stream = None
        try:
            self._context = None if self._tls is None else self._tls()
            stream = reach(self.address, time.monotonic() + CALL_S, self._context)
            said = _told(stream, Kind.DESCRIBE, b"", CALL_S)
            if str(self._of.version) not in said["versions"]:
                said = _told(stream, Kind.LOAD, self._of.body, LOAD_S)
            held = said["versions"].get(str(self._of.version))
            if said["model"] != self._of.model or held != self._of.digest:
                raise ShardFailed(
                    f"shard {self.address} has {said['model']!r} version {self._of.version}, "
                    "but not as it was cut for this front; copy the same version to both"
                )
            asked(stream, Kind.STREAM, self._of.body, time.monotonic() + CALL_S)
            described = Described(said["model"], tuple(said["slots"]))
        except (OSError, ValueError, KeyError, TypeError, EmbedcompError) as error:
            if stream is not None:
                stream.close()
            if isinstance(error, ShardFailed):
                raise
            raise ShardFailed(f"shard {self.address}: {_reason(error)}") from error
        with self._lock:
            self.described = described
            self.live = not self._closed.is_set()
        self._keep(stream)
        return described

    def send(self, message: pa.Buffer, due: float) -> Connection:
        """Send a message until then (time.monotonic); its answer comes by the stream, to `receive`.

        Raises:
            ShardFailed: the shard is down.
        """
        with self._lock:
            if not self.live:
                raise ShardFailed(f"shard {self.address} is down: {self.why}")
            stream = self._idle.pop() if self._idle else None
        try:
            if stream is None:
                stream = reach(self.address, due, self._context)
                asked(stream, Kind.STREAM, self._of.body, due)
            stream.send(Kind.POOL, message, due)
        except OSError as error:
            if stream is not None:
                stream.close()
            raise self.failed(error) from error
        return stream

    def receive(self, stream: Connection, due: float) -> pa.Buffer:
        """The answer to what was sent, which must be here by then (time.monotonic).

        Raises:
            ShardFailed: it is not; the shard counts as down until it is reached again.
        """
        try:
            found = answer(stream, due)
        except OSError as error:
            stream.close()
            raise self.failed(error) from error
        self._keep(stream)
        return found

    def failed(self, error: BaseException) -> ShardFailed:
        """Take the shard for down, and try to reach it again in a thread."""
        with self._lock:
            was_live, self.live = self.live, False
            self.why = _reason(error)
            idle = self._let_go()
            if self._trying is None and not self._closed.is_set():
                self._trying = threading.Thread(target=self._try, name="shard again", daemon=True)
                self._trying.start()
        for stream in idle:
            stream.close()
        if was_live:
            logger.warning("shard %s is down: %s", self.address, self.why)
        return ShardFailed(f"shard {self.address} is down: {self.why}")

    def close(self) -> None:
        """End the streams; those that calls use end with them."""
        with self._lock:
            self._closed.set()
            self.live = False
            idle = self._let_go()
        for stream in idle:
            stream.close()

    def _keep(self, stream: Connection) -> None:
        """Have a stream wait for the next call, unless no call can come."""
        with self._lock:
            if not self._closed.is_set():
                self._idle.append(stream)
                return
        stream.close()

    def _let_go(self) -> list[Connection]:
        """The streams that wait, which do so no more; the lock is held."""
        idle = list(self._idle)
        self._idle.clear()
        return idle

    def _try(self) -> None:
        wait, longest = AGAIN_S
        while not self._closed.wait(wait):
            wait = min(2 * wait, longest)
            before = self.described
            try:
                now = self.connect()
            except ShardFailed as error:
                self.why = str(error)
                continue
            if before is not None and not set(before.slots) <= set(now.slots):
                with self._lock:
                    self.live = False
                self.why = "it has come back with other slots"
                continue
            logger.warning("shard %s is back", self.address)
            break
        with self._lock:
            self._trying = None


def _told(stream: Connection, kind: Kind, body: bytes, seconds: float) -> Any:
    return json.loads(asked(stream, kind, body, time.monotonic() + seconds).to_pybytes())


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__
