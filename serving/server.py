"""A gRPC server of some models: three protocols on one port, health, reflection, a graceful stop.

Synchronous and threaded, since that answers half as many calls again as grpc.aio on one core.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from embedcomp.serving import security
from embedcomp.serving.doors import inference, torchrec, typed
from embedcomp.serving.doors.http import HttpDoor
from embedcomp.serving.draining import wait_for_clients
from embedcomp.serving.errors import CannotListen
from embedcomp.serving.metrics import Metrics
from embedcomp.serving.models import Models
from embedcomp.serving.repository import Repository
from embedcomp.serving.scoring import Scoring
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.threads import BEYOND, CallThreads, Room
from embedcomp.serving.tracing import Tracing
from embedcomp.serving.watching import Watching

LATE_S = 3.0  # beyond the grace time that a server has to end
HANDSHAKE_S = 10.0  # in which a connection has to be there
PUBLISH_S = 1.0  # from one time to the next that a worker's counts are there for the others
SCORING = {  # methods that score, and the names of their doors
    f"/{typed.SERVICE}/Predict": "typed",
    f"/{torchrec.SERVICE}/Predict": "torchrec",
    f"/{inference.SERVICE}/ModelInfer": "inference",
}
SERVICES = (typed.SERVICE, torchrec.SERVICE, inference.SERVICE)

logger = logging.getLogger(__name__)


def serve(
    opened: Callable[[], Repository],
    settings: ServerSettings,
    tell: Callable[[list[str]], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the calls in flight. For the main thread of a
    process that has nothing else to do: it is ended if it does not end by itself.

    Args:
        opened: opens what is served; a signal that comes meanwhile stops the server afterwards,
            also in a container's first process, which gets none without a handler.
        tell: is told what is served, a line each; None: they are printed.

    Raises:
        CannotListen: the address is taken.
    """
    asked_to_stop: SimpleQueue[int] = SimpleQueue()  # safe to put into from a signal handler
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {s: signal.signal(s, lambda number, _: asked_to_stop.put(number)) for s in signals}
    try:
        repository = opened()
        with ScoringServer(repository.models, settings, repository) as server:
            where = f"{settings.host}:{server.port}"
            repository.keep_polling()
            lines = []
            models = repository.models
            every = sorted(models.loaded(), key=lambda one: models.current(one.name) is not one)
            for one in every:  # those first that answer who asks for no version
                lines.append(f"serving {one.name} version {one.version} on {where}")
                lines.append(f"scored by {one.scorer.description}; threads: {server.threads}")
            if server.metrics_port is not None:
                lines.append(f"metrics and JSON on {settings.host}:{server.metrics_port}")
            (tell or _print)(lines)
            name = signal.Signals(asked_to_stop.get()).name
            if tell is None:
                _print([f"{name}: finishing calls in flight"])
            _end_within(settings.grace_s + LATE_S)
            repository.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_within(seconds: float) -> None:
    """End the process then, whatever still keeps it: gRPC has been seen not to come to an end."""

    def end() -> None:
        logger.error("the server did not end in %.1f s after it was stopped and is ended", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _print(lines: list[str]) -> None:
    print(*lines, sep="\n", flush=True)


class ScoringServer:
    """A running server; as a context manager it drains at the end.

    Args:
        repository: where models are from, for calls that load and unload them; None: they stay.

    Raises:
        CannotListen: the address is taken.
        BadSettings: it is open to others in plain text, or a certificate or token is of no use.
    """

    def __init__(
        self, models: Models, settings: ServerSettings, repository: Repository | None = None
    ):
        self._models, self._grace_s = models, settings.grace_s
        security.refuse_open_door(settings)
        self.metrics = Metrics(models)
        traces = self._traces = Tracing() if settings.trace else None
        watching = Watching(self.metrics, settings, traces)
        tokens = None if settings.token_file is None else security.Tokens(settings)
        shown = None if settings.tls_cert is None else security.Certificates(settings)
        threads = CallThreads(settings.calls)
        scoring = self._scoring = Scoring(models, settings, self.metrics, lambda: threads.came)
        self._room = Room(threads, settings.calls, SCORING, scoring.hint_s, self._refused)
        self.threads = scoring.threads
        self._grpc = grpc.server(
            threads,
            interceptors=[
                self._room,
                *([] if tokens is None else [tokens]),
                *([] if traces is None else [traces.interceptor]),
            ],
            options=[
                # or two servers would share a port without a word
                ("grpc.so_reuseport", int(settings.workers > 1)),
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_connection_age_ms", round(1000 * settings.connection_s)),
                # of calls on it, or those whose message never comes would keep their threads
                ("grpc.max_connection_age_grace_ms", round(1000 * max(settings.grace_s, 1.0))),
                ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE_S)),
            ],
            maximum_concurrent_rpcs=settings.calls + BEYOND,
        )
        self.port = _bind(self._grpc, settings.host, settings.port, shown)
        self._health = health.HealthServicer()  # a watcher takes no thread of the pool
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        for service in SERVICES:
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        open_protocol = inference.Inference(models, scoring, repository)
        doors = (typed.Typed(models, scoring), torchrec.TorchRec(models, scoring), open_protocol)
        self._grpc.add_generic_rpc_handlers([door.handlers(watching) for door in doors])
        names = [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._grpc)
        self._http = None
        if settings.metrics_port is not None:
            untraced = Watching(self.metrics, settings)
            self._http = HttpDoor(
                models, scoring, open_protocol, untraced, settings, tokens=tokens, shown=shown
            )
        self._grpc.start()
        self._over = threading.Event()
        if settings.workers > 1:  # others are asked for what this one counts
            threading.Thread(target=self._publish, name="metrics", daemon=True).start()

    @property
    def metrics_port(self) -> int | None:
        """The port of HTTP, if there is one."""
        return None if self._http is None else self._http.port

    def _refused(self, method: str) -> None:
        self.metrics.refused(SCORING[method])

    def _publish(self) -> None:
        while not self._over.wait(PUBLISH_S):
            self.metrics.publish()

    def drain(self) -> None:
        """Report NOT_SERVING, take no new client, answer the others until they are gone or quiet.

        Calls that are in flight when the grace time is over are cancelled.
        """
        began = time.monotonic()
        self._models.draining = True
        self._health.enter_graceful_shutdown()
        wait_for_clients(self.port, self._grace_s, lambda: self._room.came)
        left = self._grace_s - (time.monotonic() - began)
        self._grpc.stop(max(left, 0.0)).wait()
        if self._http is not None:
            self._http.close()
        self._over.set()
        self.metrics.publish()
        if self._traces is not None:
            self._traces.close()

    def __enter__(self) -> ScoringServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.drain()


def _bind(server: grpc.Server, host: str, port: int, shown: security.Certificates | None) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if shown is not None:
            bound: int = server.add_secure_port(address, shown.for_grpc())
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotListen(host, port) from error
    return bound
