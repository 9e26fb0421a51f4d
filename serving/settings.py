"""How a model is served, called and put under load.

The commands' flags and docs/settings.md are made of this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from embedcomp.errors import BadSettings
from embedcomp.support.fields import refuse_below

MOST_IN_FLIGHT = 4_096  # calls of `embedcomp load`, each of which has a thread
MOST_CALLS = 10_000_000  # of a run with a rate, whose times are drawn beforehand
MOST_RATE = 100_000  # calls a second, far more than one process sends
# Where prometheus_client adds up several processes; it has to be told before it is imported.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SHARD_DOWN = ("fail", "default")
LOOKUPS = ("auto", "engine", "fbgemm")  # who looks up rows; docs/sharding.md says what auto is
OPEN = ("health", "reflection", "metrics")  # what may be open to calls without a token


def refuse_lookups(lookups: str) -> None:
    """Raises BadSettings where nobody of that name looks up rows."""
    if lookups not in LOOKUPS:
        raise BadSettings(f"lookups is {lookups!r}, but must be {', '.join(LOOKUPS)}")


class Shown(Protocol):
    """What a server shows over TLS, and what it asks of clients: files of PEM."""

    @property
    def tls_cert(self) -> Path | None: ...
    @property
    def tls_key(self) -> Path | None: ...
    @property
    def tls_client_ca(self) -> Path | None: ...


def refuse_half_tls(settings: Shown) -> None:
    """Raises BadSettings where a file is given without those that it goes with."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise BadSettings("a certificate and its key go together; give tls_cert and tls_key")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise BadSettings("tls_client_ca is of clients over TLS; give tls_cert and tls_key too")


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
    grace_s: float = 20.0  # seconds that clients and calls in flight have when the server stops, or
    # when their connection is too old
    log_share: float = 0.0  # of calls that have a line of JSON on stderr, 0 to 1; chosen by request
    # id, so that all servers log the same
    log_values: bool = False  # those lines hold the first values of a request too
    shards: tuple[str, ...] = ()  # HOST:PORT of `embedcomp shard`s, which hold the large tables of
    # what is served; those that hold the same slots are replicas
    shard_deadline_ms: float = 30.0  # in which a call has its rows from shards, replicas included
    shard_down: str = "fail"  # what becomes of a call without some rows: "fail", or "default", by
    # which unknown ids stand for those that cannot be read
    shard_tls_ca: Path | None = None  # certificates, as PEM, by one of which those of shards are
    # signed; rows come over TLS then
    shard_tls_cert: Path | None = None  # certificate to show to shards, as PEM
    shard_tls_key: Path | None = None  # its key
    lookups: str = "auto"  # who looks up rows that are in fbgemm's layouts: "engine", "fbgemm" (its
    # operator, of a copy in memory where rows are integers), or "auto", which is the engine
    trace: bool = False  # spans of calls over gRPC for OpenTelemetry, as OTEL_* variables say

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= (getattr(self, name) or 0) < 1 << 16:
                raise BadSettings(f"{name} is {getattr(self, name)}, but ports are 0 to 65,535")
        refuse_half_tls(self)
        if (self.shard_tls_cert is None) != (self.shard_tls_key is None):
            raise BadSettings(
                "a certificate and its key go together; give shard_tls_cert and shard_tls_key"
            )
        if self.shard_tls_cert is not None and self.shard_tls_ca is None:
            raise BadSettings("shard_tls_cert is shown over TLS; give shard_tls_ca too")
        if self.log_share > 1:
            raise BadSettings(f"log_share is {self.log_share:g}, but must be 1 or less")
        for name in self.without_token:
            if name not in OPEN:
                raise BadSettings(f"without_token is {name!r}, but may be {' or '.join(OPEN)}")
        if self.shard_down not in SHARD_DOWN:
            raise BadSettings(
                f"shard_down is {self.shard_down!r}, but must be {' or '.join(SHARD_DOWN)}"
            )
        refuse_lookups(self.lookups)
        if self.lookups == "fbgemm" and self.shards:
            raise BadSettings(
                "lookups are by fbgemm, but the large tables' rows are with shards; give --lookups "
                "to `embedcomp shard` instead"
            )
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
            log_share=0,
            shard_deadline_ms=1,
        )


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """How a command gets in to a server."""

    tls: bool = False  # talk over TLS, to a server that this machine trusts
    tls_ca: Path | None = None  # certificates, as PEM, by one of which the server's is signed
    tls_cert: Path | None = None  # certificate to show, as PEM
    tls_key: Path | None = None  # its key
    token_file: Path | None = None  # file whose first token every call brings


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Which calls `embedcomp load` makes, and when."""

    split: str = "test"  # split whose rows are sent
    seconds: float = 10.0  # length of a run, after its warm-up
    rate: tuple[float, ...] = ()  # calls a second, sent at random times (Poisson) that no answer
    # moves; several: one run after another; none: each call follows the answer to the one before
    concurrency: int | None = None  # calls in flight at most; None: 256 with a rate, 4 without
    rows: int | None = None  # candidates of a call, a row of the log each; None: 64
    user_candidates: int | None = None  # instead of rows: the candidates of a call that has the
    # user-side features of one row for all of them
    connections: int = 4  # connections that the calls are spread over
    timeout_s: float = 5.0  # that a call may wait to be sent, and may then wait for its answer
    warm_up_s: float = 1.0  # of calls before those that are counted, in each run
    seed: int = 0  # equal seeds send calls at equal times

    def __post_init__(self) -> None:
        refuse_below(
            self, concurrency=1, rows=1, user_candidates=1, connections=1, warm_up_s=0, seed=0
        )
        for name in ("seconds", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadSettings(f"{name} is {getattr(self, name)}, but must be more than 0")
        if self.rows is not None and self.user_candidates is not None:
            raise BadSettings("rows and user_candidates both say how large a call is; give one")
        if self.in_flight > MOST_IN_FLIGHT:
            raise BadSettings(
                f"concurrency is {self.in_flight:,}, but must be at most {MOST_IN_FLIGHT:,}; run "
                "the command several times at once for more"
            )
        for rate in self.rate:
            self._refuse_rate(rate)

    @property
    def candidates(self) -> int:
        """Candidates of a call."""
        return self.user_candidates or self.rows or 64

    @property
    def in_flight(self) -> int:
        """Calls in flight at most."""
        return self.concurrency or (256 if self.rate else 4)

    def _refuse_rate(self, rate: float) -> None:
        if not 0 < rate <= MOST_RATE:
            raise BadSettings(
                f"rate is {rate:g}, but must be more than 0 and at most {MOST_RATE:,}; leave it "
                "out to send each call as soon as the one before is answered"
            )
        calls = rate * (self.seconds + self.warm_up_s)
        if round(rate * self.seconds) < 1 or calls > MOST_CALLS:
            raise BadSettings(
                f"rate is {rate:g}, which makes {calls:,.1f} calls in {self.seconds:g} seconds and "
                f"the warm-up, but a run has 1 to {MOST_CALLS:,}; change the rate or the seconds"
            )
