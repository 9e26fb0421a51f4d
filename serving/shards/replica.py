"""One shard as a front sees it: streams that are kept open, and whether it answers."""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import flight

from embedcomp.errors import EmbedcompError
from embedcomp.serving.shards.alarms import Alarms

CALL_S = 5.0  # that a shard may take to tell what it is
LOAD_S = 600.0  # and to open a version, whose files it checks
AGAIN_S = (0.05, 2.0)  # from one try to reach a shard to the next, at first and at most
FAILURES = (pa.ArrowException, OSError, StopIteration)

logger = logging.getLogger(__name__)


Where = Callable[[], str]  # HOST:PORT where a shard is now, or ShardFailed if nobody knows


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


class Stream:
    """One stream of messages and answers; of one call at a time.

    One that nobody holds any more is cancelled: Arrow's writer would wait for the shard to end it,
    in whichever thread drops it, and for ever where the shard hangs.
    """

    def __init__(self, client: flight.FlightClient, asked: Asked):
        descriptor = flight.FlightDescriptor.for_command(asked.body)
        self._writer, self._reader = client.do_exchange(descriptor)
        weakref.finalize(self, self._reader.cancel)

    def send(self, message: pa.Buffer) -> None:
        self._writer.write_metadata(message)

    def receive(self) -> pa.Buffer:
        return self._reader.read_chunk().app_metadata

    def cancel(self) -> None:
        """End it, also where another thread waits for an answer."""
        self._reader.cancel()


class Replica:
    """A shard, for one version of a model; safe to use from several threads.

    Streams that no call uses wait for the next one. One that fails takes all of them with it, and a
    thread tries to reach the shard again and again, which has to open the version first. Where it
    is, is asked anew each time: one that was started again may be elsewhere.
    """

    def __init__(self, where: Where, asked: Asked, alarms: Alarms):
        self.address = "that was never found"  # where it was when it was last asked for
        self._where, self._asked, self._alarms = where, asked, alarms
        self.live = False
        self.described: Described | None = None  # None: it has never answered
        self._client: flight.FlightClient | None = None
        self._idle: deque[Stream] = deque()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._trying: threading.Thread | None = None
        self.why = "it has not been asked yet"

    def connect(self) -> Described:
        """Reach the shard, have it open the version, and keep a stream to it.

        Raises:
            ShardFailed: it does not answer, or does not have the version.
        """
        client = None
        self.address = self._where()
        try:
            client = flight.connect(f"grpc://{self.address}")
            said = _act(client, "describe", b"", CALL_S)
            if str(self._asked.version) not in said["versions"]:
                said = _act(client, "load", self._asked.body, LOAD_S)
            held = said["versions"].get(str(self._asked.version))
            if said["model"] != self._asked.model or held != self._asked.digest:
                raise ShardFailed(
                    f"shard {self.address} has {said['model']!r} version {self._asked.version}, "
                    "but not as it was cut for this front; copy the same version to both"
                )
            stream = Stream(client, self._asked)
        except FAILURES as error:
            if client is not None:
                client.close()
            raise ShardFailed(f"shard {self.address}: {_reason(error)}") from error
        with self._lock:
            old, self._client = self._client, client
            self._idle = deque([stream])
            self.described = Described(said["model"], tuple(said["slots"]))
            self.live = True
        if old is not None:
            old.close()
        return self.described

    def stream(self) -> Stream:
        """A stream that nobody uses, which is given back by `keep`.

        Raises:
            ShardFailed: the shard is down.
        """
        with self._lock:
            if not self.live or self._client is None:
                raise ShardFailed(f"shard {self.address} is down: {self.why}")
            if self._idle:
                return self._idle.pop()
            client = self._client
        try:
            return Stream(client, self._asked)
        except FAILURES as error:
            raise self.failed(error) from error

    def send(self, message: pa.Buffer, due: float) -> Stream:
        """Send a message until then (time.monotonic); its answer comes by the stream, to `receive`.

        Raises:
            ShardFailed: the shard is down.
        """
        stream = self.stream()
        try:
            with self._alarms.at(due, stream.cancel):
                stream.send(message)
        except FAILURES as error:
            raise self.failed(error) from error
        return stream

    def receive(self, stream: Stream, due: float) -> pa.Buffer:
        """The answer to what was sent, which must be here by then (time.monotonic).

        Raises:
            ShardFailed: it is not; the shard counts as down until it is reached again.
        """
        try:
            with self._alarms.at(due, stream.cancel):
                answer = stream.receive()
        except FAILURES as error:
            late = time.monotonic() >= due
            raise self.failed(
                TimeoutError("it did not answer in time") if late else error
            ) from error
        with self._lock:
            self._idle.append(stream)
        return answer

    def failed(self, error: BaseException) -> ShardFailed:
        """Take the shard for down, and try to reach it again in a thread."""
        with self._lock:
            was_live, self.live = self.live, False
            self.why = _reason(error)
            self._idle.clear()
            if self._trying is None and not self._closed.is_set():
                self._trying = threading.Thread(target=self._try, name="shard again", daemon=True)
                self._trying.start()
        if was_live:
            logger.warning("shard %s is down: %s", self.address, self.why)
        return ShardFailed(f"shard {self.address} is down: {self.why}")

    def close(self) -> None:
        """End all streams; calls that use one end on it."""
        self._closed.set()
        with self._lock:
            self.live = False
            client, self._client = self._client, None
            self._idle.clear()
        if client is not None:
            client.close()

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


def _act(client: flight.FlightClient, what: str, body: bytes, seconds: float) -> Any:
    options = flight.FlightCallOptions(timeout=seconds)
    (answer,) = client.do_action(flight.Action(what, body), options)
    return json.loads(answer.body.to_pybytes())


def _reason(error: BaseException) -> str:
    """An error's first sentence, without what it says of gRPC's own state."""
    text = str(error) or type(error).__name__
    return text.split(". Detail:")[0].split(". gRPC client debug context")[0].split("\n")[0]
