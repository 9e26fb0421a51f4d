"""JSON over HTTP for people with curl: the Open Inference Protocol's REST form, and /metrics.

GET  /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME[/versions/N][/ready], /metrics
POST /v2/models/NAME[/versions/N]/infer, /v2/repository/index,
     /v2/repository/models/NAME/load, /v2/repository/models/NAME/unload
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from socketserver import ThreadingMixIn
from types import MappingProxyType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
import numpy as np
import pyarrow as pa
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from embedcomp.errors import BadRequest
from embedcomp.serving.caller import Caller
from embedcomp.serving.doors.door import DEFAULTED, ID, KEY, REFUSALS, fail, refuse
from embedcomp.serving.doors.inference import (
    CONTENTS,
    NO_JSON,
    SCORE,
    Inference,
    Tensor,
    columns_of,
    narrowed,
    refuse_others,
    version_of,
)
from embedcomp.serving.errors import CannotListen, Refused
from embedcomp.serving.models import Models
from embedcomp.serving.scoring import Scoring
from embedcomp.serving.security import Certificates, Tokens
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.watching import Watching
from embedcomp.serving.wire import inference_pb2 as wire

DOOR = "http"
CONNECTIONS = 64  # at a time; more are closed at once
BODIES = 4  # at a time that were read, which takes some thirty times their bytes
SILENT_S = 30.0  # after which a connection that says nothing is closed
WHOLE_S = 60.0  # in which a request has to be there, however slowly it comes
LINGER_S = 2.0  # for what a client still sends after its answer, which it would lose otherwise
LENGTH_DIGITS = 18
STATUSES = {
    grpc.StatusCode.OK: "200 OK",
    grpc.StatusCode.INVALID_ARGUMENT: "400 Bad Request",
    grpc.StatusCode.FAILED_PRECONDITION: "400 Bad Request",
    grpc.StatusCode.UNAUTHENTICATED: "401 Unauthorized",
    grpc.StatusCode.NOT_FOUND: "404 Not Found",
    grpc.StatusCode.DEADLINE_EXCEEDED: "408 Request Timeout",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "429 Too Many Requests",
    grpc.StatusCode.UNIMPLEMENTED: "501 Not Implemented",
    grpc.StatusCode.UNAVAILABLE: "503 Service Unavailable",
}
JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
FAILED = "500 Internal Server Error"
MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"

logger = logging.getLogger(__name__)


class Asks(Caller):
    """The caller of a request over HTTP.

    body: the request's JSON.
    """

    body: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, given: Mapping[str, Any]):
        self.given = given  # as WSGI has it
        self.path: str = given.get("PATH_INFO", "")
        self.name(self.header(ID))

    def header(self, name: str) -> str | None:
        """What a header of the request says; None: it is not there."""
        return self.given.get(f"HTTP_{name.upper().replace('-', '_')}")

    @property
    def key(self) -> bytes:
        return (self.header(KEY) or "").encode("latin-1")


class HttpDoor:
    """A server of its own port; as a thread it takes little of what calls over gRPC need.

    Raises:
        CannotListen: the address is taken.
    """

    def __init__(
        self,
        models: Models,
        scoring: Scoring,
        inference: Inference,
        watching: Watching,
        settings: ServerSettings,
        *,
        tokens: Tokens | None,
        shown: Certificates | None,
    ):
        self._models, self._scoring, self._inference = models, scoring, inference
        self._watching, self._settings, self._tokens = watching, settings, tokens
        self._reading = threading.BoundedSemaphore(BODIES)
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
            (method, re.compile(pattern + "/?$"), answer)
            for method, pattern, answer in (
                ("GET", r"/v2/health/live", lambda _: {"live": True}),
                ("GET", r"/v2/health/ready", self._ready),
                ("GET", MODEL + "/ready", self._model_ready),
                ("GET", r"/v2", lambda _: inference.server()),
                ("GET", MODEL, self._metadata),
                ("POST", MODEL + "/infer", self._infer),
                ("POST", r"/v2/repository/index", lambda _: inference.index(ready=False).models),
                ("POST", r"/v2/repository/models/(?P<name>[^/]+)/load", self._load),
                ("POST", r"/v2/repository/models/(?P<name>[^/]+)/unload", self._unload),
            )
        ]
        assert settings.metrics_port is not None
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        of_workers = {"allow_reuse_port": settings.workers > 1}
        server: Any = type("Server", (_Server,), {"address_family": family, **of_workers})
        try:
            self._server: Any = make_server(
                settings.host, settings.metrics_port, self._answer, server, _Handler
            )
        except OSError as error:
            raise CannotListen(settings.host, settings.metrics_port) from error
        self._server.shown = shown
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name=DOOR, daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(
        self, given: Mapping[str, Any], start: Callable[[str, list[tuple[str, str]]], Any]
    ) -> Iterable[bytes]:
        caller = Asks(given)
        kind, more = JSON, {ID: caller.id} if caller.id else {}
        with self._watching.call(DOOR, caller):
            try:
                kind, body = self._answered(caller)
                if caller.defaulted:
                    more[DEFAULTED] = str(caller.defaulted)
            except REFUSALS as error:
                if (retry_s := refuse(caller, error)) is not None:
                    more["Retry-After"] = str(math.ceil(retry_s))
            except Exception:  # noqa: BLE001 it must end neither the server nor be sent out
                fail(caller, "request")
            if caller.said:
                body = _encoded({"error": caller.said})
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **more}
        start(STATUSES.get(caller.code, FAILED), list(headers.items()))
        return [body]

    def _answered(self, caller: Asks) -> tuple[str, bytes]:
        """The kind of an answer, and the answer."""
        if caller.path == "/metrics":
            self._refuse_strangers(caller, "metrics")
            return TEXT, self._watching.metrics.text()
        self._refuse_strangers(caller, "health" if "/health/" in caller.path else "")
        return JSON, _encoded(self._routed(caller))

    def _refuse_strangers(self, caller: Asks, what: str) -> None:
        if self._tokens is None or what in self._settings.without_token:
            return
        if not self._tokens.known(caller.header("authorization")):
            raise Refused(
                grpc.StatusCode.UNAUTHENTICATED,
                "this server answers those that bring a token it knows, as Authorization: Bearer "
                "TOKEN",
            )

    def _routed(self, caller: Asks) -> Any:
        for method, pattern, answer in self._routes:
            match = pattern.match(caller.path)
            if match and caller.given.get("REQUEST_METHOD") == method:
                asked = {k: _utf8(v) for k, v in match.groupdict().items() if v is not None}
                if method == "GET":
                    return answer(caller, **asked)
                body = self._body(caller)
                with self._reading:
                    caller.body = _read(body)
                    return answer(caller, **asked)
        raise Refused(
            grpc.StatusCode.NOT_FOUND, f"there is no {caller.path!r} to be asked in this way"
        )

    def _body(self, caller: Asks) -> bytes:
        if caller.header("transfer-encoding") is not None:
            raise BadRequest("Transfer-Encoding", "is not read here; send a Content-Length")
        length = caller.given.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdecimal() and len(length) <= LENGTH_DIGITS):
            raise BadRequest("Content-Length", f"is no number of bytes: {length!r}")
        if int(length) > self._settings.max_message_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the request has {int(length):,} bytes, but this server takes "
                f"{self._settings.max_message_bytes:,}; send fewer candidates",
            )
        try:
            found: bytes = caller.given["wsgi.input"].read(int(length))
        except OSError as error:  # it took too long, or the client has gone
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"{int(length):,} bytes were announced and did not come: {error}",
            ) from error
        if len(found) < int(length):
            raise BadRequest("body", f"ends after {len(found):,} of {int(length):,} bytes")
        return found

    def _ready(self, _: Asks) -> Any:
        if not self._models.ready:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "no model answers here at the moment")
        return {"ready": True}

    def _model_ready(self, _: Asks, name: str, version: str = "") -> Any:
        found = self._models.find(name, *version_of(version))
        return {"name": found.name, "ready": True}

    def _metadata(self, _: Asks, name: str, version: str = "") -> Any:
        return self._inference.described(self._models.find(name, *version_of(version)))

    def _infer(self, caller: Asks, name: str, version: str = "") -> Any:
        body = caller.body
        caller.name(body.get("id"))
        served = self._models.find(name, *version_of(version), caller)
        outputs = body.get("outputs", [])
        refuse_others([str(_field(one, "name", str)) for one in _objects("outputs", outputs)])
        inputs = _tensors(body)
        scores = self._scoring.score(served, caller, lambda one: one.read(columns_of(inputs, one)))
        score = {"name": SCORE, "datatype": "FP32", "shape": [len(scores)], "data": scores.tolist()}
        found = {"model_name": served.name, "model_version": str(served.version)}
        id = {"id": _field(body, "id", str)} if "id" in body else {}
        return found | id | {"outputs": [score]}

    def _load(self, caller: Asks, name: str) -> Any:
        told = caller.body.get("parameters", {})
        if not isinstance(told, dict):
            raise BadRequest("parameters", "must be an object")
        parameters = {}
        for key, value in told.items():
            if not isinstance(value, int | str):
                raise BadRequest(key, "is neither a number nor a string")
            kind = "int64_param" if isinstance(value, int) else "string_param"
            try:
                parameters[key] = ParseDict({kind: value}, wire.ModelRepositoryParameter())
            except ParseError as error:
                raise BadRequest(key, f"is out of range: {error}") from error
        self._inference.load(name, parameters)
        return {}

    def _unload(self, _: Asks, name: str) -> Any:
        self._inference.unload(name)
        return {}


def _utf8(text: str) -> str:
    """A part of a path, of which WSGI makes a character a byte."""
    return text.encode("latin-1").decode(errors="replace")


def _read(body: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        BadRequest: it is none.
    """
    try:
        found = json.loads(body or b"{}")
    except NO_JSON as error:
        raise BadRequest("body", "is no JSON", values=f": {error}") from error
    if not isinstance(found, dict):
        raise BadRequest("body", "must be a JSON object")
    return found


def _encoded(value: Any) -> bytes:
    def told(message: Any) -> Any:
        return MessageToDict(message, preserving_proto_field_name=True)

    if not isinstance(value, dict | list):
        value = told(value) if hasattr(value, "DESCRIPTOR") else [told(one) for one in value]
    return json.dumps(value).encode() + b"\n"


def _objects(name: str, given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise BadRequest(name, "must be a list of objects")
    return given


def _field(one: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(one.get(name), kind):
        raise BadRequest(name, f"of an entry must be there, and a {kind.__name__}")
    return one[name]


def _tensors(body: Mapping[str, Any]) -> dict[str, Tensor]:
    """The request's inputs by name."""
    found: dict[str, Tensor] = {}
    for one in _objects("inputs", body.get("inputs")):
        name = _field(one, "name", str)
        if name in found:
            raise BadRequest(name, "is given twice")
        found[name] = _tensor(name, one)
    return found


def _tensor(name: str, one: Mapping[str, Any]) -> Tensor:
    datatype, shape = _field(one, "datatype", str), _field(one, "shape", list)
    if datatype not in CONTENTS:
        raise BadRequest(name, f"is of {datatype!r}, but may be of {', '.join(CONTENTS)}")
    if not all(type(size) is int for size in shape):
        raise BadRequest(name, "has a shape of something else than whole numbers")
    if not 0 < len(shape) < 3 or min(shape) < 0:
        raise BadRequest(name, f"has the shape {shape}, but must be [N] or [N, columns]")
    values = _flat(_field(one, "data", list))
    if len(values) != math.prod(shape):
        raise BadRequest(name, f"has {len(values):,} values, but is {shape}")
    kind, _ = CONTENTS[datatype]
    if not kind:
        if not all(isinstance(value, str) for value in values):
            raise BadRequest(name, "holds something else than strings")
        return _strings(name, values), shape
    if not all(type(value) in (int, float, bool) for value in values):
        raise BadRequest(name, "holds something else than numbers")
    try:
        return narrowed(name, np.array(values), kind), shape
    except (OverflowError, TypeError) as error:
        raise BadRequest(
            name, f"holds a number that no {datatype} can be", values=f": {error}"
        ) from error


def _strings(name: str, values: list[str]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:  # JSON can say half of a character
        raise BadRequest(name, "holds a string that is not Unicode", values=f": {error}") from error


def _flat(data: list[Any]) -> list[Any]:
    """Values of a list, or of a list of rows."""
    if data and all(isinstance(row, list) for row in data):
        return [value for row in data for value in row]
    return data


class _Timed(io.RawIOBase):
    """What a connection says, until its request has to be whole."""

    def __init__(self, connection: socket.socket):
        self._connection, self._until = connection, time.monotonic() + WHOLE_S

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"a request has to be there in {WHOLE_S:.0f} s")
        self._connection.settimeout(min(left, SILENT_S))
        try:
            return self._connection.recv_into(into)
        finally:
            self._connection.settimeout(SILENT_S)


class _Handler(WSGIRequestHandler):
    timeout = SILENT_S

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Timed(self.connection))

    def finish(self) -> None:
        super().finish()
        until = time.monotonic() + LINGER_S
        with suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(1 << 16):
                    return

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, and only so many of them."""

    daemon_threads = True
    request_queue_size = 2 * CONNECTIONS  # else clients that come together wait for seconds
    shown: Certificates | None = None

    def __init__(self, *given: Any):
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(*given)

    def get_request(self) -> tuple[Any, Any]:
        taken, address = super().get_request()
        return (taken if self.shown is None else self.shown.wrapped(taken)), address

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a connection over HTTP failed", exc_info=True)
