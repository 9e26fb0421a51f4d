"""What all doors have in common: methods whose errors become statuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from embedcomp.engine.engine import BadId
from embedcomp.errors import BadRequest
from embedcomp.serving.errors import Refused
from embedcomp.serving.metrics import Metrics

DETAIL_CHARS = 500  # of an error's message: more might not fit the call's trailers

M = TypeVar("M", bound=Message)
Answer = Callable[[bytes, grpc.ServicerContext], Message]
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


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What a caller is told of one of `REFUSALS`."""
    code = error.code if isinstance(error, Refused) else grpc.StatusCode.INVALID_ARGUMENT
    return code, str(error)[:DETAIL_CHARS]


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


def refuse_given_up(context: grpc.ServicerContext) -> None:
    """Raises Refused where a call was given up while it waited: nobody reads its scores."""
    if not context.is_active():
        raise Refused(grpc.StatusCode.CANCELLED, "the call was cancelled or out of time")


def _method(door: str, answer: Answer, metrics: Metrics) -> grpc.RpcMethodHandler:
    """A unary method whose errors become statuses and never the server's own words."""

    def call(data: bytes, context: grpc.ServicerContext) -> Message:
        with metrics.call(door) as counted:
            try:
                return answer(data, context)
            except REFUSALS as error:
                counted.code, message = status_of(error)
            except Exception:  # a fault of ours must end neither the server nor be sent out
                logger.exception("a call failed")
                counted.code, message = FAULT
        context.abort(counted.code, message)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(
        call, response_serializer=lambda message: message.SerializeToString()
    )
