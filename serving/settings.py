"""How a model is served; the command's flags and docs/settings.md are made of this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedcomp.errors import BadSettings
from embedcomp.support.fields import refuse_below

OPEN = ("health", "reflection", "metrics")  # what may be open to calls without a token


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a model is served."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 50051  # to listen on; 0 takes a free one
    metrics_port: int | None = None  # for HTTP: /metrics and JSON; 0 takes a free one, None: none
    workers: int = 1  # processes that share the port, and in memory the artifacts
    threads: int | None = None  # batches that a worker scores at a time; None: its share of cores
    calls: int = 64  # taken at a time; more are refused
    max_batch_rows: int = 512  # candidates scored at a time: those of several small calls, or so
    # many of a larger one
    max_wait_us: int = 0  # that a call waits for others to be scored with; 0: it takes those that
    # are there
    max_queue_rows: int = 4096  # candidates that may wait to be scored; more are refused
    max_message_bytes: int = 16 << 20  # bytes of the largest request that is taken
    max_rows: int = 16_384  # candidates that a request may have
    max_ids: int = 4 << 20  # ids of one feature in a request, the user's counted per candidate
    tls_cert: Path | None = None  # certificate chain as PEM, read again when it is renewed
    tls_key: Path | None = None  # its key
    tls_client_ca: Path | None = None  # certificates that those of clients must be signed by
    token_file: Path | None = None  # tokens that calls must bring, a line each; it may change
    without_token: tuple[str, ...] = ()  # of "health", "reflection" and "metrics", what needs none
    insecure: bool = False  # listen in plain text on an address that other machines reach
    poll_seconds: float = 0.0  # from one look for new versions to the next; 0: only `load` calls
    connection_s: float = 10.0  # after which a connection is opened anew; a stop that waits longer
    # (`grace_s`) loses no call
    grace_s: float = 20.0  # seconds that clients and calls in flight have when the server stops

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= (getattr(self, name) or 0) < 1 << 16:
                raise BadSettings(f"{name} is {getattr(self, name)}, but ports are 0 to 65,535")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise BadSettings("a certificate and its key go together; give tls_cert and tls_key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise BadSettings("tls_client_ca is of clients over TLS; give tls_cert and tls_key too")
        for name in self.without_token:
            if name not in OPEN:
                raise BadSettings(f"without_token is {name!r}, but may be {' or '.join(OPEN)}")
        refuse_below(
            self,
            workers=1,
            threads=1,
            calls=1,
            max_batch_rows=1,
            max_wait_us=0,
            max_queue_rows=0,
            max_message_bytes=1,
            max_rows=1,
            max_ids=1,
            poll_seconds=0,
            connection_s=0.1,
            grace_s=0,
        )
