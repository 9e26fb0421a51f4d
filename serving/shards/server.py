"""A shard: a process that holds slots of a model's versions and answers with pooled rows.

Who connects asks what is here, has versions loaded, and begins a stream, which is of one version;
each of its messages (kernels/slots.h) has one answer. A version is kept as long as a stream of it
is open, and the latest one always.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from embedcomp.artifact.artifact import version_folder, versions
from embedcomp.errors import BadArtifact, EmbedcompError
from embedcomp.serving.errors import CannotListen
from embedcomp.serving.security import Certificates
from embedcomp.serving.shards.connection import Closed, Connection, Kind
from embedcomp.serving.shards.settings import ShardSettings
from embedcomp.sharding.cutting import Cutting, in_words
from embedcomp.sharding.slots import HeldSlots, OtherVersion, WrongMessage

SECONDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
MOST_CONNECTIONS = 4_096  # each has a thread; more are closed at once
FINISH_S = 1.0  # that messages have for their answers when the shard stops

logger = logging.getLogger(__name__)


class NotThis(EmbedcompError):
    """Something is asked for that this shard does not have, or that is no question."""


class Versions:
    """The slots of one model's versions on disk, opened when somebody asks for them.

    Args:
        lookups: "fbgemm": its operator looks up rows that are in its layouts.
        path: NAME/VERSION, which is opened first, or NAME, whose newest version that can be opened
            is: a damaged one must not keep a shard from coming back with what is served.

    Raises:
        BadArtifact: there is no version that can be opened.
    """

    def __init__(self, path: Path, slots: Sequence[int], lookups: str = "auto"):
        _allow_files()
        self._lookups = lookups
        first = version_folder(path)
        self.model, self._folder, self.slots = first.parent.name, first.parent, tuple(slots)
        self._held: dict[int, HeldSlots] = {}
        self._streams: dict[int, int] = {}  # by version
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._load_first(int(first.name), older=first != path.resolve())

    def _load_first(self, newest: int, older: bool) -> None:
        try:
            self.load(newest)
        except BadArtifact as error:
            before = [v for v in versions(self._folder) if older and v < newest]
            if not before:
                raise
            logger.warning("version %s of %s is left out: %s", newest, self.model, error)
            self._load_first(before[-1], older)

    @property
    def loaded(self) -> dict[int, HeldSlots]:
        return dict(self._held)

    @property
    def streams(self) -> int:
        """How many are open, of all versions."""
        with self._lock:
            return sum(self._streams.values())

    def load(self, version: int) -> HeldSlots:
        """Open a version, unless it is open.

        Raises:
            BadArtifact: it is not here, not cut, or damaged.
        """
        with self._loading:
            found = self._held.get(version)
            if found is not None:
                return found
            if version not in versions(self._folder):
                raise BadArtifact(f"there is no version {version} of {self.model!r} on this shard")
            folder = self._folder / str(version)
            cutting = Cutting.of(folder)
            if cutting is None:
                raise BadArtifact(
                    f"{folder} is not cut into slots; name what `embedcomp cut` wrote"
                )
            found = HeldSlots(cutting, version, self.slots, self._lookups)
            with self._lock:
                self._held = {**self._held, version: found}
            logger.info("version %s of %s is here", version, self.model)
            return found

    @contextmanager
    def stream(self, version: int, digest: str) -> Iterator[HeldSlots]:
        """A version, for as long as a stream of it is open.

        Raises:
            NotThis: it is not here, or was cut anew under the same number.
        """
        with self._lock:
            found = self._held.get(version)
            if found is None:
                here = ", ".join(map(str, sorted(self._held)))
                raise NotThis(f"version {version} of {self.model!r} is not here, only {here}")
            if found.cutting.digest != digest:
                raise NotThis(
                    f"version {version} of {self.model!r} is here, but not as the front has it"
                )
            self._streams[version] = self._streams.get(version, 0) + 1
        try:
            yield found
        finally:
            with self._lock:
                self._streams[version] -= 1
                if not self._streams[version] and version < max(self._held):
                    self._held = {v: held for v, held in self._held.items() if v != version}
                    logger.info("version %s of %s is asked for no more", version, self.model)


class ShardMetrics:
    """What a shard counts, for Prometheus."""

    def __init__(self, held: Versions):
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "embedcomp_shard_requests", "Messages by what became of them.", ["code"], **made
        )
        self.seconds = Histogram(
            "embedcomp_shard_pool_seconds", "That rows are looked up and summed.", buckets=SECONDS,
            **made,
        )  # fmt: skip
        self.numbers = Counter("embedcomp_shard_numbers", "Of answers, 4 bytes each.", **made)
        Gauge("embedcomp_shard_slots", "That it holds.", **made).set(len(held.slots))
        Gauge("embedcomp_shard_bytes", "Of the files of all versions here.", **made).set_function(
            lambda: sum(one.bytes for one in held.loaded.values())
        )
        Gauge("embedcomp_shard_versions", "That are here.", **made).set_function(
            lambda: len(held.loaded)
        )


class ShardServer:
    """Serves slots at an address from the moment it is made, a thread a connection.

    metrics_port: of /metrics, if there is one.

    Raises:
        BadSettings: a certificate cannot be read.
        CannotListen: the address is taken.
    """

    def __init__(self, held: Versions, settings: ShardSettings):
        try:
            self._listening = _listening(settings.host, settings.port)
        except OSError as error:
            raise CannotListen(settings.host, settings.port) from error
        self.port: int = self._listening.getsockname()[1]
        self._tls = None if settings.tls_cert is None else Certificates(settings)
        self.held, self.metrics = held, ShardMetrics(held)
        self.metrics_port: int | None = None
        if settings.metrics_port is not None:
            try:
                http, _ = start_http_server(
                    settings.metrics_port, settings.host, registry=self.metrics.registry
                )
            except OSError as error:
                raise CannotListen(settings.host, settings.metrics_port) from error
            self.metrics_port = http.server_port
        self._answering: set[int] = set()  # connections with a message that has no answer yet
        self._closed = False
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                taken, _ = self._listening.accept()
            except ConnectionError:
                continue  # who came is gone
            except OSError as error:
                if self._closed:
                    return
                logger.warning("no connection can be taken: %s", error)
                time.sleep(0.1)  # there are too many open files, say, and some may be closed
                continue
            if not self._places.acquire(blocking=False):
                logger.warning("a connection is closed, since %s are open", f"{MOST_CONNECTIONS:,}")
                taken.close()
                continue
            try:
                threading.Thread(target=self._talk, args=(taken,), daemon=True).start()
            except RuntimeError as error:  # there are as many threads as the machine allows
                logger.warning("a connection is closed: %s", error)
                self._places.release()
                taken.close()

    def _talk(self, taken: socket.socket) -> None:
        """Answer what is asked over one connection, until it ends."""
        try:
            connection = Connection(taken if self._tls is None else self._tls.wrapped(taken))
        except OSError as error:  # who came may be gone already
            logger.info("a connection ended: %s", error)
            taken.close()
            self._places.release()
            return
        try:
            with ExitStack() as stream:
                self._answer_all(connection, stream)
        except Closed:
            pass  # as fronts end it
        except OSError as error:
            logger.info("a connection ended: %s", error)
        finally:
            self._answering.discard(id(connection))
            connection.close()
            self._places.release()

    def _answer_all(self, connection: Connection, stream: ExitStack) -> None:
        """
        Args:
            stream: has the version that is asked for of its own, for as long as it is open.
        """
        slots = None
        while True:
            kind, body = connection.receive()
            self._answering.add(id(connection))
            try:
                if kind == Kind.POOL:
                    if slots is None:
                        raise NotThis("no stream was begun")
                    connection.send(Kind.ANSWER, self._pooled(slots, body))
                elif kind == Kind.STREAM:
                    asked = self._asked(body, version=int, digest=str)
                    stream.close()
                    slots = stream.enter_context(
                        self.held.stream(asked["version"], asked["digest"])
                    )
                    connection.send(Kind.ANSWER)
                elif kind in (Kind.DESCRIBE, Kind.LOAD):
                    if kind == Kind.LOAD:
                        self.held.load(self._asked(body, version=int)["version"])
                    connection.send(Kind.ANSWER, json.dumps(self._described()).encode())
                else:
                    raise NotThis(f"{kind.name} is no question")
            except EmbedcompError as error:
                connection.send(Kind.REFUSED, str(error).encode())
                return
            self._answering.discard(id(connection))

    def _pooled(self, slots: HeldSlots, body: pa.Buffer) -> np.ndarray:
        began = time.perf_counter()
        try:
            found = slots.pool(body)
        except WrongMessage as error:
            code = "other_version" if isinstance(error, OtherVersion) else "wrong"
            self.metrics.requests.labels(code).inc()
            raise
        self.metrics.seconds.observe(time.perf_counter() - began)
        self.metrics.requests.labels("ok").inc()
        self.metrics.numbers.inc(found.size)
        return found

    def _asked(self, body: pa.Buffer, **fields: type) -> dict[str, Any]:
        """What a question in JSON is about.

        Raises:
            NotThis: it is none, or about another model.
        """
        try:
            asked = json.loads(body.to_pybytes())
            if not all(isinstance(asked[name], what) for name, what in fields.items()):
                raise ValueError
            model = asked["model"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NotThis("what is asked for is not told as fronts do") from error
        if model != self.held.model:
            raise NotThis(f"model {model!r} is not here, only {self.held.model!r}")
        return dict(asked)

    def _described(self) -> dict[str, Any]:
        loaded = self.held.loaded
        return {
            "model": self.held.model,
            "slots": self.held.slots,
            "versions": {str(v): one.cutting.digest for v, one in loaded.items()},
        }

    def close(self) -> None:
        """Take no more connections; those that there are stay."""
        self._closed = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for one
        self._listening.close()

    def finish(self) -> None:
        """Wait until no message is without its answer, for a second at most."""
        until = time.monotonic() + FINISH_S
        while self._answering and time.monotonic() < until:
            time.sleep(0.001)


def _allow_files() -> None:
    """Have as many open files as the system allows: a version is a file a slot, and many systems
    begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def serve_shard(
    path: Path,
    slots: Sequence[int],
    settings: ShardSettings,
    tell: Callable[[str], None] = lambda line: print(line, flush=True),
) -> None:
    """Serve slots until SIGTERM or SIGINT. For the main thread of a process.

    Raises:
        BadArtifact: the model's newest version is not cut, or a file is damaged.
        CannotListen: the address is taken.
        BadSettings: it is open to other machines in plain text, or a certificate cannot be read.
    """
    stop: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.put(number))
    settings.refuse_open_door()
    held = Versions(path, slots, settings.lookups)
    server = ShardServer(held, settings)
    if server.metrics_port is not None:
        tell(f"metrics on {settings.host}:{server.metrics_port}")
    tell(
        f"slots {in_words(slots)} of {held.model} version {max(held.loaded)} on "
        f"{settings.host}:{server.port}"
    )
    stop.get()
    server.close()
    server.finish()
    os._exit(0)  # streams that fronts keep open would keep the process
