"""A gRPC server around one scorer: typed scoring, health, reflection, a graceful stop.

Synchronous and threaded, since that answers half as many calls again as grpc.aio on one core.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import grpc
import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from embedcomp.engine.description import (
    COMPILED,
    MACHINE_CODE,
    OWN_CODE,
    TORCH,
)
from embedcomp.errors import BadRequest
from embedcomp.serving.convert import from_request
from embedcomp.serving.errors import CannotListen, Refused
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

if TYPE_CHECKING:
    from embedcomp.scorer.scorer import Scorer

SERVICE = wire.DESCRIPTOR.services_by_name["ScoringService"].full_name
DETAIL_CHARS = 500  # of an error's message: more might not fit the call's trailers
KINDS = {
    COMPILED: wire.Engine.KIND_COMPILED,
    MACHINE_CODE: wire.Engine.KIND_MACHINE_CODE,
    TORCH: wire.Engine.KIND_TORCH,
    OWN_CODE: wire.Engine.KIND_OWN_CODE,
}

M = TypeVar("M", bound=Message)

logger = logging.getLogger(__name__)


def serve(scorer: Scorer, settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the calls in flight. For the main thread.

    Raises:
        CannotListen: the address is taken.
    """
    asked_to_stop: SimpleQueue[int] = SimpleQueue()  # safe to put into from a signal handler
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {s: signal.signal(s, lambda number, _: asked_to_stop.put(number)) for s in signals}
    try:
        with ScoringServer(scorer, settings) as server:
            where = f"{settings.host}:{server.port}"
            print(f"serving {scorer.name} version {scorer.version} on {where}", flush=True)
            by = scorer.description
            print(f"scored by {by}; threads of a large call: {by.threads}", flush=True)
            name = signal.Signals(asked_to_stop.get()).name
            print(f"{name}: finishing calls in flight", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ScoringServer:
    """A running server; as a context manager it drains at the end.

    Raises:
        CannotListen: the address is taken.
    """

    def __init__(self, scorer: Scorer, settings: ServerSettings):
        self._grace_s = settings.grace_s
        self._grpc = grpc.server(
            ThreadPoolExecutor(settings.threads, thread_name_prefix="scoring"),
            options=[
                ("grpc.so_reuseport", 0),  # or two servers would share a port without a word
                ("grpc.max_receive_message_length", settings.max_message_bytes),
            ],
            maximum_concurrent_rpcs=settings.threads + settings.queue,
        )
        self.port = _bind(self._grpc, settings.host, settings.port)
        self._health = health.HealthServicer()  # a watcher takes no thread of the pool
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._grpc.add_generic_rpc_handlers([ScoringService(scorer, settings).handlers()])
        names = [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._grpc)
        self._grpc.start()

    def drain(self) -> None:
        """Report NOT_SERVING, take no new call, finish those in flight within the grace time."""
        self._health.enter_graceful_shutdown()
        self._grpc.stop(self._grace_s).wait()

    def __enter__(self) -> ScoringServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.drain()


def _bind(server: grpc.Server, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound: int = server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotListen(host, port) from error
    return bound


class ScoringService:
    """embedcomp.v1.ScoringService: from a request's bytes to the scorer and back."""

    def __init__(self, scorer: Scorer, settings: ServerSettings):
        self._scorer, self._settings = scorer, settings
        self._names = scorer.features.names
        self._metadata = describe(scorer, settings.max_rows)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's methods; they parse requests themselves, to tell a client what is wrong."""
        answers: dict[str, Callable[[bytes, grpc.ServicerContext], Message]] = {
            "Predict": self._predict,
            "Metadata": self._describe,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: _method(answer) for name, answer in answers.items()}
        )

    def _predict(self, data: bytes, context: grpc.ServicerContext) -> wire.PredictResponse:
        if not context.is_active():  # gave up while it waited: nobody reads these scores
            raise Refused(grpc.StatusCode.CANCELLED, "the call was cancelled or out of time")
        limits = self._settings
        scores = self._scorer.score_message(data, max_rows=limits.max_rows, max_ids=limits.max_ids)
        if scores is None:
            scores = self._score_slowly(data)
        return wire.PredictResponse(
            scores=scores.tobytes(), model=self._scorer.name, version=self._scorer.version
        )

    def _score_slowly(self, data: bytes) -> np.ndarray:
        """The scores of a request that the engine does not read, or what is wrong with it."""
        request = _parse(wire.PredictRequest, data)
        self._check_model(request.model, request.version)
        items, user = from_request(request, self._names)
        self._check_size(items, user)
        return self._scorer.score(items, user).astype("<f4", copy=False)

    def _describe(self, data: bytes, context: grpc.ServicerContext) -> wire.MetadataResponse:
        request = _parse(wire.MetadataRequest, data)
        self._check_model(request.model, request.version)
        return self._metadata

    def _check_model(self, name: str, version: int) -> None:
        served = self._scorer
        if (name or served.name) != served.name or (version or served.version) != served.version:
            asked = f"model {name or served.name!r} version {version or 'any'}"
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                f"{asked} is not served here, only {served.name!r} version {served.version}",
            )

    def _check_size(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> None:
        rows, limits = items.num_rows, self._settings
        if rows > limits.max_rows:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the request has {rows:,} candidates, but this server takes {limits.max_rows:,} "
                "in one call; send them in several",
            )
        for batch, times in ((items, 1), (user, rows)):
            for name, column in (
                zip(batch.schema.names, batch.columns, strict=True) if batch else ()
            ):
                ids = times * len(column.flatten()) if pa.types.is_list(column.type) else 0
                if ids > limits.max_ids:
                    raise BadRequest(
                        name,
                        f"has {ids:,} ids over all candidates, but this server takes "
                        f"{limits.max_ids:,}; send fewer candidates or shorter lists",
                    )


def describe(scorer: Scorer, max_rows: int) -> wire.MetadataResponse:
    """What is served: name, version, what scores, and the features in the model's order."""
    sides = {"user": wire.Feature.SIDE_USER, "item": wire.Feature.SIDE_ITEM}
    by = scorer.description
    found = wire.MetadataResponse(
        model=scorer.name,
        version=scorer.version,
        max_rows=max_rows,
        engine=wire.Engine(
            kind=KINDS[by.name],
            precision=by.precision,
            threads=by.threads,
            reason=f"{by.reason}{by.lost}",
        ),
    )
    for feature in scorer.features.ids:
        found.features.add(
            name=feature.name,
            kind=wire.Feature.KIND_CATEGORICAL,
            type=_id_type(feature.vocabulary.type),
            side=sides[feature.side],
            multi_valued=feature.multi_valued,
            rows=feature.vocabulary.rows,
        )
    for number in scorer.features.dense:
        found.features.add(
            name=number.name,
            kind=wire.Feature.KIND_DENSE,
            type=wire.Feature.TYPE_FLOAT32,
            side=sides[number.side],
        )
    return found


def _id_type(of: pa.DataType) -> wire.Feature.Type:
    return wire.Feature.TYPE_STRING if of == pa.string() else wire.Feature.TYPE_INT64


def _method(
    answer: Callable[[bytes, grpc.ServicerContext], Message],
) -> grpc.RpcMethodHandler:
    """A unary method whose errors become statuses and never the server's own words."""

    def call(data: bytes, context: grpc.ServicerContext) -> Message:
        try:
            return answer(data, context)
        except BadRequest as error:
            code, message = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Refused as error:
            code, message = error.code, str(error)
        except Exception:  # a fault of ours must end neither the server nor in a traceback sent out
            logger.exception("a call failed")
            code, message = grpc.StatusCode.INTERNAL, "the server failed; its log has the details"
        context.abort(code, message[:DETAIL_CHARS])
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(
        call, response_serializer=lambda message: message.SerializeToString()
    )


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the message is no {kind.DESCRIPTOR.full_name}: {error}; strings must be UTF-8",
        ) from error
