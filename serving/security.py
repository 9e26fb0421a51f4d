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
from embedcomp.serving.settings import ServerSettings

LOOK_AGAIN_S = 1.0  # from one look at the token file to the next
HEADER, SCHEME = "authorization", "Bearer "
OPENED = {  # what may be opened to calls without a token, and the services behind it
    "health": ("grpc.health.v1.Health",),
    "reflection": ("grpc.reflection.v1alpha.ServerReflection",),
    "metrics": (),  # which is on the HTTP port
}

logger = logging.getLogger(__name__)


def refuse_open_door(settings: ServerSettings) -> None:
    """Raises BadSettings where others could talk to it in plain text, and nobody said so."""
    if settings.tls_cert is None and not settings.insecure and not _is_loopback(settings.host):
        raise BadSettings(
            f"host {settings.host} is open to other machines, and calls would be in plain text; "
            "give --tls-cert and --tls-key, or say --insecure"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """What the server shows and asks for; None: calls are in plain text.

    Renewed certificates are shown to whoever connects from then on. Where the new ones do not fit
    each other, the old ones are shown on.

    Raises:
        BadSettings: a file cannot be read, or holds no certificate or no key that fits it.
    """
    if settings.tls_cert is None:
        return None
    certificates = _Certificates(settings)
    asked = settings.tls_client_ca is not None
    return grpc.dynamic_ssl_server_credentials(certificates.first, certificates.renewed, asked)


class _Certificates:
    """Certificates from files, read again once they were written anew."""

    def __init__(self, settings: ServerSettings):
        assert settings.tls_cert is not None and settings.tls_key is not None
        self._cert, self._key = settings.tls_cert, settings.tls_key
        self._ca = settings.tls_client_ca
        self._seen = self._written()
        self.first = self._read()

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new ones; None where there are none. gRPC asks before each handshake."""
        try:
            written = self._written()
            if written == self._seen:
                return None
            self._seen = written
            found = self._read()
        except BadSettings as error:
            logger.warning("certificates are not renewed: %s", error)
            return None
        logger.info("certificates are renewed from %s", self._cert)
        return found

    def _written(self) -> list[int]:
        return [_written(file) for file in (self._cert, self._key, self._ca) if file is not None]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        cert, key = _bytes(self._cert), _bytes(self._key)
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._cert, self._key)
        except (ssl.SSLError, OSError) as error:
            raise BadSettings(
                f"{self._cert} and {self._key} are no certificate and its key, as PEM: {error}"
            ) from error
        authority = None if self._ca is None else _bytes(self._ca)
        if self._ca is not None:
            try:
                context.load_verify_locations(self._ca)
            except (ssl.SSLError, OSError) as error:
                raise BadSettings(f"{self._ca} holds no certificate, as PEM: {error}") from error
        return grpc.ssl_server_certificate_configuration([(key, cert)], authority)


class HttpTls:
    """The same for the HTTP port: whoever connects is shown the newest certificates."""

    def __init__(self, settings: ServerSettings):
        assert settings.tls_cert is not None and settings.tls_key is not None
        self._cert, self._key = settings.tls_cert, settings.tls_key
        self._ca = settings.tls_client_ca
        self._seen = _written(self._cert)
        self._context = self._made()

    def wrapped(self, taken: socket.socket) -> ssl.SSLSocket:
        """A connection over TLS; hands are shaken when something is read from it."""
        try:
            written = _written(self._cert)
            if written != self._seen:
                self._seen, self._context = written, self._made()
        except (BadSettings, ssl.SSLError, OSError) as error:
            logger.warning("certificates are not renewed: %s", error)
        return self._context.wrap_socket(
            taken, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )

    def _made(self) -> ssl.SSLContext:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found.load_cert_chain(self._cert, self._key)
        if self._ca is not None:
            found.load_verify_locations(self._ca)
            found.verify_mode = ssl.CERT_REQUIRED
        return found


class Tokens(grpc.ServerInterceptor):
    """Lets calls in that bring one of the tokens in a file, a line each; # begins a comment.

    The file is read again once it was written anew, so tokens come and go while the server runs.

    Raises:
        BadSettings: the file cannot be read, or has no token.
    """

    def __init__(self, settings: ServerSettings):
        assert settings.token_file is not None
        self._file = settings.token_file
        self._open = {service for name in settings.without_token for service in OPENED[name]}
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


_REFUSED = grpc.unary_unary_rpc_method_handler(_refuse)


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
