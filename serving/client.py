"""A client of the typed scoring service."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from google.protobuf.message import Message

from embedcomp.errors import BadSettings
from embedcomp.serving.convert import to_request
from embedcomp.serving.errors import CallFailed, Unreachable
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

SERVICE = wire.DESCRIPTOR.services_by_name["ScoringService"].full_name
MOST_RETRIES = 4  # gRPC makes five attempts at most

WAY_OUT = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "send fewer rows in a call or allow more time",
    grpc.StatusCode.UNAUTHENTICATED: "give the client a token",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "send smaller requests or fewer at a time",
}


class Client:
    """Scores candidates at HOST:PORT; safe to use from several threads.

    Args:
        timeout_s: longest that a call may take, its retries included.
        retries: times that a call is sent again when no server took it (UNAVAILABLE), 0 to 4.
        model, version: refuse to be served by another; empty and 0 take what is served.
        tls: talk over TLS, to a server whose certificate is signed by one in `ca`, as PEM; None:
            by one that this machine trusts.
        cert, key: that the client shows, as PEM.
        token: that every call brings.

    Raises:
        BadSettings: timeout_s or retries is out of range, or a file cannot be read.
    """

    def __init__(
        self,
        target: str,
        timeout_s: float = 10.0,
        retries: int = 3,
        *,
        model: str = "",
        version: int = 0,
        tls: bool = False,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        token: str = "",
    ):
        if timeout_s <= 0:
            raise BadSettings(f"timeout_s is {timeout_s}, but must be more than 0")
        if not 0 <= retries <= MOST_RETRIES:
            raise BadSettings(f"retries is {retries}, but must be 0 to {MOST_RETRIES}")
        self.target, self.timeout_s = target, timeout_s
        self._model, self._version = model, version
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        options = _options(retries)
        if tls or ca or cert:
            shown = grpc.ssl_channel_credentials(*(_pem(file) for file in (ca, key, cert)))
            self._channel = grpc.secure_channel(target, shown, options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=options)
        self._predict = self._method("Predict", wire.PredictResponse)
        self._describe = self._method("Metadata", wire.MetadataResponse)

    def predict(self, items: pa.RecordBatch, user: pa.RecordBatch | None = None) -> np.ndarray:
        """Click probabilities float32 [N] of N candidates.

        Args:
            items: raw columns, one row a candidate; nulls allowed.
            user: one row of columns that hold for every candidate.

        Raises:
            BadRequest: a column's type cannot be sent.
            Unreachable: no server answers.
            CallFailed: the server refused the request or was too slow.
        """
        request = to_request(items, user, self._model, self._version)
        response: wire.PredictResponse = self._call(self._predict, request)
        return np.frombuffer(response.scores, "<f4")

    def metadata(self) -> wire.MetadataResponse:
        """What is served: model, version, features.

        Raises:
            Unreachable, CallFailed: as for predict.
        """
        request = wire.MetadataRequest(model=self._model, version=self._version)
        response: wire.MetadataResponse = self._call(self._describe, request)
        return response

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _method(self, name: str, response: type[Message]) -> grpc.UnaryUnaryMultiCallable:
        return self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            code, reason = error.code(), error.details()
            if code == grpc.StatusCode.UNAVAILABLE:
                raise Unreachable(self.target, reason) from error
            advice = f"; {WAY_OUT[code]}" if code in WAY_OUT else ""
            raise CallFailed(self.target, code, f"{reason}{advice}") from error


def token_of(file: Path) -> str:
    """The first token in a file of them.

    Raises:
        BadSettings: it cannot be read, or has none.
    """
    for line in (_pem(file) or b"").decode().splitlines():
        if token := line.split("#")[0].strip():
            return token
    raise BadSettings(f"{file} has no token; write one a line")


def _pem(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise BadSettings(f"{file} cannot be read: {error.strerror or error}") from error


def _options(retries: int) -> list[tuple[str, str | int]]:
    """Channel options: gRPC's own retry policy, and no limit on the size of an answer."""
    options: list[tuple[str, str | int]] = [("grpc.max_receive_message_length", -1)]
    if not retries:
        return [*options, ("grpc.enable_retries", 0)]
    policy = {
        "maxAttempts": retries + 1,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": [grpc.StatusCode.UNAVAILABLE.name],
    }
    methods = [{"name": [{"service": SERVICE}], "retryPolicy": policy}]
    return [*options, ("grpc.service_config", json.dumps({"methodConfig": methods}))]
