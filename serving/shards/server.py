"""A shard: a process that holds slots of a model's versions and answers with pooled rows.

It speaks Arrow Flight. A stream of `do_exchange` is of one version; each of its messages is a body
of bytes (kernels/slots.h) and has one answer. `do_action` tells what is here, and loads versions. A
version is kept as long as a stream of it is open, and the latest one always.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from pyarrow import flight

from embedcomp.artifact.artifact import version_folder, versions
from embedcomp.errors import BadArtifact, EmbedcompError
from embedcomp.serving.errors import CannotListen
from embedcomp.serving.shards.settings import ShardSettings
from embedcomp.sharding.cutting import Cutting, in_words
from embedcomp.sharding.slots import HeldSlots, OtherVersion, WrongMessage

SECONDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)

FINISH_S = 1.0  # that messages have for their answers when the shard stops

logger = logging.getLogger(__name__)


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
            KeyError: it is not here, or was cut anew under the same number.
        """
        with self._lock:
            found = self._held.get(version)
            if found is None:
                here = ", ".join(map(str, sorted(self._held)))
                raise KeyError(f"version {version} of {self.model!r} is not here, only {here}")
            if found.cutting.digest != digest:
                raise KeyError(
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


class ShardServer(flight.FlightServerBase):
    """Serves slots at an address from the moment it is made, in threads of Arrow's own.

    `serve` is not called: it would take signals for itself, and wait for open streams.

    Raises:
        CannotListen: the address is taken.
    """

    def __init__(self, held: Versions, settings: ShardSettings):
        location = f"grpc://{settings.host}:{settings.port}"
        try:
            super().__init__(location)
        except (pa.ArrowException, OSError) as error:
            raise CannotListen(settings.host, settings.port) from error
        self.held, self.metrics = held, ShardMetrics(held)
        self._answering: set[int] = set()  # streams with a message that has no answer yet

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        asked = json.loads(descriptor.command)
        if asked["model"] != self.held.model:
            raise KeyError(f"model {asked['model']!r} is not here, only {self.held.model!r}")
        with self.held.stream(asked["version"], asked["digest"]) as slots:
            while True:
                try:
                    body = reader.read_chunk().app_metadata
                except StopIteration:
                    return
                self._answering.add(id(writer))
                try:
                    writer.write_metadata(pa.py_buffer(self._answer(slots, body)))
                finally:
                    self._answering.discard(id(writer))

    def _answer(self, slots: HeldSlots, body: pa.Buffer) -> np.ndarray:
        began = time.perf_counter()
        try:
            found = slots.pool(np.frombuffer(body, "<u4"))
        except OtherVersion as error:
            self.metrics.requests.labels("other_version").inc()
            raise KeyError(str(error)) from error
        except (WrongMessage, ValueError) as error:
            self.metrics.requests.labels("wrong").inc()
            raise pa.ArrowInvalid(str(error)) from error
        self.metrics.seconds.observe(time.perf_counter() - began)
        self.metrics.requests.labels("ok").inc()
        self.metrics.numbers.inc(found.size)
        return found

    def do_action(self, context: Any, action: Any) -> Iterable[bytes]:
        if action.type == "load":
            asked = json.loads(action.body.to_pybytes())
            if asked["model"] != self.held.model:
                raise KeyError(f"model {asked['model']!r} is not here, only {self.held.model!r}")
            try:
                self.held.load(asked["version"])
            except EmbedcompError as error:
                raise KeyError(str(error)) from error
        elif action.type != "describe":
            raise KeyError(f"there is no action {action.type!r}, but describe and load")
        loaded = self.held.loaded
        return [
            json.dumps(
                {
                    "model": self.held.model,
                    "slots": self.held.slots,
                    "versions": {str(v): one.cutting.digest for v, one in loaded.items()},
                }
            ).encode()
        ]

    def finish(self) -> None:
        """Wait until no message is without its answer, for a second at most."""
        until = time.monotonic() + FINISH_S
        while self._answering and time.monotonic() < until:
            time.sleep(0.001)

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        return [
            ("describe", "The model, its slots and its versions that are here."),
            ("load", "Open a version: {model, version}; then as describe."),
        ]


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
        BadSettings: it is open to other machines in plain text.
    """
    stop: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.put(number))
    settings.refuse_open_door()
    held = Versions(path, slots, settings.lookups)
    server = ShardServer(held, settings)
    if settings.metrics_port is not None:
        try:
            http, _ = start_http_server(
                settings.metrics_port, settings.host, registry=server.metrics.registry
            )
        except OSError as error:
            raise CannotListen(settings.host, settings.metrics_port) from error
        tell(f"metrics on {settings.host}:{http.server_port}")
    tell(
        f"slots {in_words(slots)} of {held.model} version {max(held.loaded)} on "
        f"{settings.host}:{server.port}"
    )
    stop.get()
    server.finish()
    os._exit(0)  # streams that fronts keep open would keep the process
