"""What the blocking and the asyncio client share: channels, retries, split batches and errors."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from google.protobuf.message import Message

from embedcomp.errors import BadSettings, EmbedcompError
from embedcomp.serving.access import credentials
from embedcomp.serving.convert import to_request
from embedcomp.serving.errors import CallFailed, Unreachable
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

SERVICE = wire.DESCRIPTOR.services_by_name["ScoringService"].full_name
MOST_RETRIES = 4  # gRPC makes five attempts at most
RETRIED_BYTES = (1 << 31) - 1  # of a request; beyond gRPC's own 256 KiB none would be sent again
LARGE_ROWS = 2_048  # from which on the server's limit is asked for before it has refused anything
RECONNECT_MS = 5_000  # longest pause before a lost connection is opened; gRPC's is two minutes

WAY_OUT = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "send fewer rows in a call or allow more time",
    grpc.StatusCode.UNAUTHENTICATED: "give the client a token",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "send smaller requests or fewer at a time",
}

Options = list[tuple[str, str | int]]


@dataclass(frozen=True)
class Terms:
    """When a call has to be over, by time.monotonic, and the headers that it brings."""

    ends: float
    metadata: list[tuple[str, str]]


class Calls:
    """A client's settings and connections; `Client` and `AsyncClient` make the calls.

    Args:
        target: HOST:PORT of the server.
        timeout_s: longest that a call may take, its retries and all of its parts included.
        retries: times that a call is sent again when no server took it (UNAVAILABLE), 0 to 4; after
            0.1 s, and then twice as long each time up to 1 s, a fifth more or less by chance. What
            the server asks for in its trailing metadata, `grpc-retry-pushback-ms`, goes before.
        retry_exhausted: send it again also when the server has too much to do
            (RESOURCE_EXHAUSTED).
        connections: that calls take in turns.
        in_flight: parts of a batch of more rows than the server takes that are sent at a time.
        model, version: refuse to be served by another; empty and 0 take what is served.
        label: "stable", "canary" or "shadow", in the place of a version.
        tls: talk over TLS, to a server whose certificate is signed by one in `ca`, as PEM; None:
            by one that this machine trusts.
        cert, key: that the client shows, as PEM.
        token: that every call brings.

    Raises:
        BadSettings: a number is out of range, or a file cannot be read.
    """

    _grpc: Any = grpc  # the module that opens channels; grpc.aio has the same names

    def __init__(
        self,
        target: str,
        timeout_s: float = 10.0,
        retries: int = 3,
        *,
        retry_exhausted: bool = False,
        connections: int = 1,
        in_flight: int = 4,
        model: str = "",
        version: int = 0,
        label: str = "",
        tls: bool = False,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        token: str = "",
    ):
        if not 0 <= retries <= MOST_RETRIES:
            raise BadSettings(f"retries is {retries}, but must be 0 to {MOST_RETRIES}")
        for name, value in (("connections", connections), ("in_flight", in_flight)):
            if value < 1:
                raise BadSettings(f"{name} is {value}, but must be 1 or more")
        self.target, self.timeout_s = target, _positive(timeout_s)
        self._connections, self._in_flight = connections, in_flight
        self._model, self._version, self._label = model, version, label
        self._metadata = authorization(token)
        self._credentials = credentials(tls, ca, cert, key)
        self._options = options(retries, retry_exhausted)
        self._max_rows: int | None = None  # that the server takes in a call, once it is known
        self._channels: list[Any] = []
        if self._grpc is grpc:  # those of asyncio belong to the loop of the first call
            self._open()

    def _open(self) -> None:
        """Make the channels, which connect when they are first used."""
        if not self._channels:
            self._channels = [
                channel(self.target, self._credentials, self._options, self._grpc)
                for _ in range(self._connections)
            ]
            self._predicts = self._in_turns("Predict", wire.PredictResponse)
            self._describes = self._in_turns("Metadata", wire.MetadataResponse)

    def _in_turns(self, name: str, response: type[Message]) -> Iterator[Any]:
        """A method of the service, each time on the next channel."""
        methods = [
            one.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            for one in self._channels
        ]
        return cycle(methods)

    def _terms(self, timeout_s: float | None, key: str = "") -> Terms:
        """The terms of a call that begins now."""
        longest = self.timeout_s if timeout_s is None else _positive(timeout_s)
        told = [("x-request-key", key)] if key else []
        return Terms(time.monotonic() + longest, [*self._metadata, *told])

    def _unasked(self, items: pa.RecordBatch) -> bool:
        """Whether the batch is so large that it is better to know the server's limit first."""
        return self._max_rows is None and items.num_rows > LARGE_ROWS

    def _learn(self, served: wire.MetadataResponse, sent: int = 0) -> bool:
        """Take in how many rows the server takes; whether a call of `sent` rows had more."""
        self._max_rows = served.max_rows or None
        return 0 < served.max_rows < sent

    def _with(self, terms: Terms) -> dict[str, Any]:
        """Arguments of a call that gRPC makes."""
        return {"timeout": terms.ends - time.monotonic(), "metadata": terms.metadata}

    def _described(self) -> wire.MetadataRequest:
        return wire.MetadataRequest(model=self._model, version=self._version, label=self._label)

    def _most(self, items: pa.RecordBatch) -> int:
        """Rows of the batch to send in a call, by what is known of the server."""
        return min(max(items.num_rows, 1), self._max_rows or sys.maxsize)

    def _parts(
        self, items: pa.RecordBatch, user: pa.RecordBatch | None, most: int
    ) -> Iterator[wire.PredictRequest]:
        """Requests of up to `most` candidates, in order; each brings the user's row."""
        for start in range(0, max(items.num_rows, 1), most):
            request = to_request(items.slice(start, most), user, self._model, self._version)
            request.label = self._label
            yield request

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Within the block, gRPC's errors become sentences."""
        try:
            yield
        except grpc.RpcError as error:
            raise told(self.target, error) from error
        except grpc.FutureCancelledError as error:
            reason = "the client was closed meanwhile"
            raise CallFailed(self.target, grpc.StatusCode.CANCELLED, reason) from error


def channel(
    target: str, shown: grpc.ChannelCredentials | None, options: Options, kind: Any = grpc
) -> Any:
    """A channel with a connection of its own.

    Args:
        kind: grpc or grpc.aio.
    """
    if shown is None:
        return kind.insecure_channel(target, options=options)
    return kind.secure_channel(target, shown, options=options)


def options(retries: int, retry_exhausted: bool = False) -> Options:
    """Channel options: gRPC's own retry policy, and no limit on the size of an answer.

    Without retries, too, gRPC sends a call again that a server which closes a connection has not
    looked at.
    """
    always: Options = [
        ("grpc.per_rpc_retry_buffer_size", RETRIED_BYTES),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
    ]
    if not retries:
        return always
    exhausted = [grpc.StatusCode.RESOURCE_EXHAUSTED.name] if retry_exhausted else []
    policy = {
        "maxAttempts": retries + 1,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": [grpc.StatusCode.UNAVAILABLE.name, *exhausted],
    }
    methods = [{"name": [{"service": SERVICE}], "retryPolicy": policy}]
    return [*always, ("grpc.service_config", json.dumps({"methodConfig": methods}))]


def authorization(token: str) -> list[tuple[str, str]]:
    """Metadata of a call that brings a token, if there is one."""
    return [("authorization", f"Bearer {token}")] if token else []


def told(target: str, error: grpc.RpcError) -> EmbedcompError:
    """A call's failure as a sentence with the way out."""
    code, reason = error.code(), error.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        return Unreachable(target, reason)
    advice = f"; {WAY_OUT[code]}" if code in WAY_OUT else ""
    return CallFailed(target, code, f"{reason}{advice}")


def too_many(error: CallFailed, items: pa.RecordBatch) -> bool:
    """Whether the call may have been refused because of the number of its rows."""
    return error.code == grpc.StatusCode.INVALID_ARGUMENT and items.num_rows > 1


def joined(responses: Sequence[wire.PredictResponse]) -> np.ndarray:
    """Scores float32 [N] of a batch from those of its parts, in order."""
    parts = [np.frombuffer(response.scores, "<f4") for response in responses]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _positive(timeout_s: float) -> float:
    if not timeout_s > 0:
        raise BadSettings(f"timeout_s is {timeout_s}, but must be more than 0")
    return timeout_s
