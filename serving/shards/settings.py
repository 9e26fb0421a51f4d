"""How slots are served; the flags of `embedcomp shard` and docs/settings.md are made of this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedcomp.errors import BadSettings
from embedcomp.serving.settings import refuse_half_tls, refuse_lookups


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How slots of a model are served to fronts."""

    slots: str = "0-255"  # slots that it holds: 0-127, or 0/2 for the first of two shards
    host: str = "127.0.0.1"  # address to listen on
    port: int = 50061  # to listen on; 0 takes a free one
    metrics_port: int | None = None  # for HTTP: /metrics; 0 takes a free one, None: none
    lookups: str = "auto"  # who looks up rows that are in fbgemm's layouts: "engine", "fbgemm" (its
    # operator, of a copy in memory), or "auto", which is the engine
    tls_cert: Path | None = None  # certificate chain as PEM, read again when it is renewed
    tls_key: Path | None = None  # its key
    tls_client_ca: Path | None = None  # certificates that those of fronts must be signed by
    insecure: bool = False  # listen on an address that other machines reach, in plain text

    def __post_init__(self) -> None:
        refuse_lookups(self.lookups)
        refuse_half_tls(self)
        for name in ("port", "metrics_port"):
            if not 0 <= (getattr(self, name) or 0) < 1 << 16:
                raise BadSettings(f"{name} is {getattr(self, name)}, but ports are 0 to 65,535")

    def refuse_open_door(self) -> None:
        """Raises BadSettings where rows would be open to other machines without a word."""
        from embedcomp.serving.security import is_loopback  # grpc is not there for all commands

        if self.tls_cert is None and not self.insecure and not is_loopback(self.host):
            raise BadSettings(
                f"host is {self.host}, which other machines reach, and a shard answers everyone in "
                "plain text; give --tls-cert and --tls-key, and --tls-client-ca to answer fronts "
                "alone, or --insecure on a network that you trust, or listen on 127.0.0.1"
            )
