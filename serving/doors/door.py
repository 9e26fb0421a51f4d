"""What all doors have in common: methods whose errors become statuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from embedcomp.engine.engine import BadId
from embedcomp.errors import BadRequest, EmbedcompError
from embedcomp.serving.caller import Caller
from embedcomp.serving.errors import Refused, retry_after
from embedcomp.serving.watching import Watching

DETAIL_CHARS = 500  # of an error's message: more might not fit the call's trailers

M = TypeVar("M", bound=Message)
KEY = "x-request-key"  # header of what calls are told apart by; without, by their own bytes
ID = "x-request-id"  # header of what a call is called in logs; it is sent back
DEFAULTED = "x-defaulted-ids"  # header of an answer: ids whose rows could not be had
REFUSALS = (BadRequest, BadId, Refused)
FAULT = grpc.StatusCode.INTERNAL, "the server failed; its log has the details"
Answer = Callable[[bytes, Caller], Message]

logger = logging.getLogger(__name__)


def handlers(
    door: str, service: str, answers: Mapping[str, Answer], watching: Watching
) -> grpc.GenericRpcHandler:
    """A service's methods; they parse requests themselves, to tell a client what is wrong."""
    return grpc.method_handlers_generic_handler(
        service, {name: _method(door, answer, watching) for name, answer in answers.items()}
    )


class Waits(Caller):
    """The caller of a call over gRPC."""

    _told: tuple[tuple[str, str], ...] = ()  # headers that are sent when the call ends

    def __init__(self, data: bytes, context: grpc.ServicerContext):
        self._data, self._context = data, context
        self._headers = dict(context.invocation_metadata())
        if ID in self._headers:
            self.name(self._headers[ID])
            if self.id:
                self.tell(ID, self.id)

    @property
    def key(self) -> bytes:
        given = self._headers.get(KEY)
        if given is None:
            return self._data
        return given.encode() if isinstance(given, str) else bytes(given)

    def is_active(self) -> bool:
        return self._context.is_active()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._context.add_callback(callback)

    def come_again(self, after_s: float) -> None:
        """Hint at when the same call may be answered."""
        self.tell(*retry_after(after_s))

    def tell(self, header: str, value: str) -> None:
        """Send this when the call ends."""
        self._told = (*self._told, (header, value))
        self._context.set_trailing_metadata(self._told)


def refuse(caller: Caller, error: EmbedcompError) -> float | None:
    """Note why a call is refused, which is one of `REFUSALS`.

    Returns:
        The seconds after which the same request may be answered; None: it will not be.
    """
    code, retry_s = grpc.StatusCode.INVALID_ARGUMENT, None
    if isinstance(error, Refused):
        code, retry_s = error.code, error.retry_s
    caller.refuse(code, str(error)[:DETAIL_CHARS], (error.plain or str(error))[:DETAIL_CHARS])
    return retry_s


def fail(caller: Caller, what: str) -> None:
    """Note that a fault of ours ended a call. Where the fault is known, in an except clause."""
    logger.exception("%s %s failed", what, caller.request_id)
    caller.refuse(*FAULT, plain=FAULT[1])


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


def _method(door: str, answer: Answer, watching: Watching) -> grpc.RpcMethodHandler:
    """A unary method whose errors become statuses and never the server's own words."""

    def call(data: bytes, context: grpc.ServicerContext) -> Message:
        caller = Waits(data, context)
        with watching.call(door, caller):
            try:
                found = answer(data, caller)
                if caller.defaulted:
                    caller.tell(DEFAULTED, str(caller.defaulted))
                return found
            except REFUSALS as error:
                if (retry_s := refuse(caller, error)) is not None:
                    caller.come_again(retry_s)
            except Exception:  # noqa: BLE001 it must end neither the server nor be sent out
                fail(caller, "call")
        context.abort(caller.code, caller.said)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(
        call, response_serializer=lambda message: message.SerializeToString()
    )
