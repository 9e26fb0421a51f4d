"""What all doors have in common: methods whose errors become statuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from embedcomp.engine.engine import BadId
from embedcomp.errors import BadRequest
from embedcomp.serving.errors import Refused, retry_after
from embedcomp.serving.metrics import Metrics

DETAIL_CHARS = 500  # of an error's message: more might not fit the call's trailers

M = TypeVar("M", bound=Message)
Answer = Callable[[bytes, grpc.ServicerContext], Message]
KEY = "x-request-key"  # header of what calls are told apart by; without, by their own bytes
REFUSALS = (BadRequest, BadId, Refused)
FAULT = grpc.StatusCode.INTERNAL, "the server failed; its log has the details"

logger = logging.getLogger(__name__)


def handlers(
    door: str, service: str, answers: Mapping[str, Answer], metrics: Metrics
) -> grpc.GenericRpcHandler:
    """A service's methods; they parse requests themselves, to tell a client what is wrong."""
    return grpc.method_handlers_generic_handler(
        service, {name: _method(door, answer, metrics) for name, answer in answers.items()}
    )


class Waits:
    """The caller of a call over gRPC."""

    def __init__(self, data: bytes, context: grpc.ServicerContext):
        self._data, self._context = data, context
        self.is_active, self.add_callback = context.is_active, context.add_callback

    @cached_property
    def key(self) -> bytes:
        """What calls are told apart by where some of them are answered otherwise."""
        given = dict(self._context.invocation_metadata()).get(KEY)
        if given is None:
            return self._data
        return given.encode() if isinstance(given, str) else bytes(given)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What a caller is told of one of `REFUSALS`."""
    code = error.code if isinstance(error, Refused) else grpc.StatusCode.INVALID_ARGUMENT
    return code, str(error)[:DETAIL_CHARS]


def retry_of(error: Exception) -> float | None:
    """The seconds after which a refused request may be answered."""
    return error.retry_s if isinstance(error, Refused) else None


def parsed(kind: type[M], data: bytes) -> M:
    """A message of its bytes.

    Raises:
        Refused: they are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the message is no {kind.DESCRIPTOR.full_name}: {error}; strings must be UTF-8",
        ) from error


def _method(door: str, answer: Answer, metrics: Metrics) -> grpc.RpcMethodHandler:
    """A unary method whose errors become statuses and never the server's own words."""

    def call(data: bytes, context: grpc.ServicerContext) -> Message:
        with metrics.call(door) as counted:
            try:
                return answer(data, context)
            except REFUSALS as error:
                counted.code, message = status_of(error)
                if (retry_s := retry_of(error)) is not None:
                    context.set_trailing_metadata((retry_after(retry_s),))
            except Exception:  # a fault of ours must end neither the server nor be sent out
                logger.exception("a call failed")
                counted.code, message = FAULT
        context.abort(counted.code, message)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(
        call, response_serializer=lambda message: message.SerializeToString()
    )
