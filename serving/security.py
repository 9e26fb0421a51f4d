"""Who may talk to the server: certificates and tokens, from files that may change meanwhile."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from embedcomp.errors import BadSettings
from embedcomp.serving.settings import ServerSettings, Shown

LOOK_AGAIN_S = 1.0  # from one look at the token file to the next
HEADER, SCHEME = "authorization", "Bearer "
SERVICES = {  # that may be open to calls without a token, by the setting's word for them
    "health": "grpc.health.v1.Health",
    "reflection": "grpc.reflection.v1alpha.ServerReflection",
}

logger = logging.getLogger(__name__)


def refuse_open_door(settings: ServerSettings) -> None:
    """Raises BadSettings where others could talk to it in plain text, and nobody said so."""
    if settings.tls_cert is None and not settings.insecure and not is_loopback(settings.host):
        raise BadSettings(
            f"host {settings.host} is open to other machines, and calls would be in plain text; "
            "give --tls-cert and --tls-key, or say --insecure"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Certificates:
    """What the server shows, and what it asks of clients, from files that may be renewed.

    Who connects after new ones were written is shown those. Where they do not fit each other, the
    old ones are shown on, and the log says why.

    Raises:
        BadSettings: a file cannot be read, or holds no certificate or no key that fits it.
    """

    def __init__(self, settings: Shown):
        assert settings.tls_cert is not None and settings.tls_key is not None
        self._cert, self._key = settings.tls_cert, settings.tls_key
        self._ca = settings.tls_client_ca
        self._lock = threading.Lock()
        self._seen = self._written()
        self._context, self._for_grpc = self._read()

    def for_grpc(self) -> grpc.ServerCredentials:
        """As gRPC takes them, which asks before each handshake whether there are new ones."""
        shown = self._for_grpc

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            before, shown = shown, self._now()[1]
            return None if shown is before else shown

        return grpc.dynamic_ssl_server_credentials(shown, renewed, self._ca is not None)

    def wrapped(self, taken: socket.socket) -> ssl.SSLSocket:
        """A connection over TLS; hands are shaken when something is read from it."""
        return self._now()[0].wrap_socket(taken, server_side=True, do_handshake_on_connect=False)

    def _now(self) -> tuple[ssl.SSLContext, grpc.ServerCertificateConfiguration]:
        with self._lock:
            try:
                written = self._written()
                if written != self._seen:
                    self._seen = written
                    self._context, self._for_grpc = self._read()
                    logger.info("certificates are renewed from %s", self._cert)
            except BadSettings as error:
                logger.warning("certificates are not renewed: %s", error)
            return self._context, self._for_grpc

    def _written(self) -> list[int]:
        return [_written(file) for file in (self._cert, self._key, self._ca) if file is not None]

    def _read(self) -> tuple[ssl.SSLContext, grpc.ServerCertificateConfiguration]:
        cert, key = _bytes(self._cert), _bytes(self._key)
        authority = None if self._ca is None else _bytes(self._ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key)
        except (ssl.SSLError, OSError) as error:
            raise BadSettings(
                f"{self._cert} and {self._key} are no certificate and its key, as PEM: {error}"
            ) from error
        if self._ca is not None:
            try:
                context.load_verify_locations(self._ca)
            except (ssl.SSLError, OSError) as error:
                raise BadSettings(f"{self._ca} holds no certificate, as PEM: {error}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context, grpc.ssl_server_certificate_configuration([(key, cert)], authority)


class Tokens(grpc.ServerInterceptor):
    """Lets calls in that bring one of the tokens in a file, a line each; # begins a comment.

    The file is read again once it was written anew, so tokens come and go while the server runs.

    Raises:
        BadSettings: the file cannot be read, or has no token.
    """

    def __init__(self, settings: ServerSettings):
        assert settings.token_file is not None
        self._file = settings.token_file
        self._open = {SERVICES.get(name) for name in settings.without_token}
        self._lock = threading.Lock()
        self._looked, self._seen = time.monotonic(), _written(self._file)
        self._tokens = self._read()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        service = details.method.rpartition("/")[0].lstrip("/")
        if service in self._open or self.known(dict(details.invocation_metadata).get(HEADER)):
            return continuation(details)
        return _REFUSED

    def known(self, given: str | bytes | None) -> bool:
        """Whether a call's header has one of the tokens."""
        header = given.decode("latin-1") if isinstance(given, bytes) else given or ""
        if not header.startswith(SCHEME):
            return False
        token = header.removeprefix(SCHEME).encode()
        found = False
        for one in self._now():  # all of them, so that the time tells nothing
            found |= hmac.compare_digest(one, token)
        return found

    def _now(self) -> list[bytes]:
        with self._lock:
            now = time.monotonic()
            if now - self._looked < LOOK_AGAIN_S:
                return self._tokens
            self._looked = now
            try:
                written = _written(self._file)
                if written != self._seen:
                    self._tokens, self._seen = self._read(), written
                    logger.info("%d tokens are read from %s", len(self._tokens), self._file)
            except BadSettings as error:
                logger.warning("tokens stay as they were: %s", error)
            return self._tokens

    def _read(self) -> list[bytes]:
        lines = (line.split(b"#")[0].strip() for line in _bytes(self._file).splitlines())
        found = [line for line in lines if line]
        if not found:
            raise BadSettings(f"{self._file} has no token; write one a line")
        return found


def _refuse(_: Any, context: grpc.ServicerContext) -> None:
    context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        f"this server lets calls in that bring a token it knows, as {HEADER}: {SCHEME}TOKEN",
    )


_REFUSED = grpc.stream_unary_rpc_method_handler(_refuse)  # its message is not waited for


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadSettings(f"{file} cannot be read: {error.strerror or error}") from error


def _written(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError as error:
        raise BadSettings(f"{file} cannot be read: {error.strerror or error}") from error
