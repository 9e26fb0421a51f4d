"""How a model is served; the command's flags and docs/settings.md are made of this."""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.errors import BadSettings
from embedcomp.support.fields import refuse_below


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a model is served."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 50051  # to listen on; 0 takes a free one
    threads: int = 4  # calls scored at a time
    queue: int = 64  # calls that may wait for a thread; more are refused
    max_message_bytes: int = 16 << 20  # bytes of the largest request that is taken
    max_rows: int = 16_384  # candidates that a request may have
    max_ids: int = 4 << 20  # ids of one feature in a request, the user's counted per candidate
    poll_seconds: float = 0.0  # from one look for new versions to the next; 0: only `load` calls
    grace_s: float = 10.0  # seconds that calls in flight have to finish when the server stops

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise BadSettings(f"port is {self.port}, but ports are 0 to 65,535")
        refuse_below(
            self,
            threads=1,
            queue=0,
            max_message_bytes=1,
            max_rows=1,
            max_ids=1,
            grace_s=0,
            poll_seconds=0,
        )
