"""How a client gets in to a server: over TLS, with a certificate of its own, with a token."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc

from embedcomp.errors import BadSettings
from embedcomp.serving.settings import AccessSettings


def arguments(access: AccessSettings) -> dict[str, Any]:
    """The settings as a client's constructor takes them.

    Raises:
        BadSettings: the file of tokens cannot be read, or has none.
    """
    token = "" if access.token_file is None else token_of(access.token_file)
    files = {"ca": access.tls_ca, "cert": access.tls_cert, "key": access.tls_key}
    return {"tls": access.tls, "token": token, **files}


def token_of(file: Path) -> str:
    """The first token in a file of them.

    Raises:
        BadSettings: it cannot be read, or has none.
    """
    for line in (_pem(file) or b"").decode().splitlines():
        if token := line.split("#")[0].strip():
            return token
    raise BadSettings(f"{file} has no token; write one a line")


def credentials(
    tls: bool, ca: Path | None, cert: Path | None, key: Path | None
) -> grpc.ChannelCredentials | None:
    """What a channel shows and trusts; None: it talks in plain text.

    Raises:
        BadSettings: a file cannot be read, or a certificate lacks its key.
    """
    if (cert is None) != (key is None):
        raise BadSettings("a client's certificate and its key go together; give both or neither")
    if not (tls or ca or cert):
        return None
    return grpc.ssl_channel_credentials(*(_pem(file) for file in (ca, key, cert)))


def context(ca: Path, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """What a socket shows and trusts.

    Raises:
        BadSettings: a file cannot be read, or does not hold what it should, as PEM.
    """
    for file in (ca, cert, key):
        _pem(file)
    try:
        made = ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, OSError) as error:
        raise BadSettings(f"{ca} holds no certificate, as PEM: {error}") from error
    if cert is not None:
        try:
            made.load_cert_chain(cert, key)
        except (ssl.SSLError, OSError) as error:
            raise BadSettings(
                f"{cert} and {key} are no certificate and its key, as PEM: {error}"
            ) from error
    return made


def _pem(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise BadSettings(f"{file} cannot be read: {error.strerror or error}") from error
