"""What goes wrong between a client and a server, as sentences."""

from __future__ import annotations

import math

import grpc

from embedcomp.errors import EmbedcompError


class CannotListen(EmbedcompError):
    """The server's address is taken, not this machine's, or not allowed."""

    def __init__(self, host: str, port: int):
        super().__init__(
            f"cannot listen on {host}:{port}: the port is in use or not allowed, or the address "
            "is not this machine's; choose another with --port (0 takes a free one) or --host"
        )


class Refused(EmbedcompError):
    """A request that the server does not answer; `code` is the status the client gets, `retry_s`
    the seconds after which the same request may be answered, if that is likely."""

    def __init__(self, code: grpc.StatusCode, message: str, *, retry_s: float | None = None):
        self.code, self.retry_s = code, retry_s
        super().__init__(message)


def retry_after(seconds: float) -> tuple[str, str]:
    """Trailing metadata that tell a client when to come back; gRPC's own retries follow it."""
    return "grpc-retry-pushback-ms", str(math.ceil(1000 * seconds))


class WorkersDie(EmbedcompError):
    """Workers end as soon as they have begun."""

    def __init__(self, times: int, code: int | None):
        super().__init__(
            f"{times} workers ended at once, one after the other (exit code {code}; -9 is often "
            "too little memory), so all are stopped; their log above says why"
        )


def workers_differ(why: str) -> Refused:
    """What a call is told that changed the versions of its own worker, but not of all others."""
    return Refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"not all workers of this server made the change: {why}; try it again",
    )


class Unreachable(EmbedcompError):
    """No server answers at the client's target."""

    def __init__(self, target: str, reason: str):
        super().__init__(
            f"no server answers at {target} ({reason}); start one with `embedcomp serve ARTIFACT` "
            "or correct the address"
        )


class CallFailed(EmbedcompError):
    """The server did not answer a call with scores; `code` is the call's status."""

    def __init__(self, target: str, code: grpc.StatusCode, message: str):
        self.code = code
        super().__init__(f"{target} answered {code.name}: {message}")
