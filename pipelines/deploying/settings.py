"""What is deployed how often; the flags of `embedcomp deploy` and docs/settings.md are of this."""

from __future__ import annotations

from dataclasses import dataclass, replace

from embedcomp.errors import BadSettings
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.settings import ShardSettings
from embedcomp.support.fields import refuse_below

# of ServerSettings: what is known here, or differs from host to host
NOT_GIVEN = ("host", "shards", "workers")


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """How many shards and fronts there are, and what each may have."""

    shards: int = 2  # that the slots are dealt to in turns
    replicas: int = 1  # of each shard, on hosts of their own where there are so many
    fronts: int = 1  # servers that clients call, likewise on hosts of their own
    cpus: float = 1.0  # that Ray keeps for each shard and front; there is no limit to what they use
    host: str | None = None  # address that all of them listen on; None: the one by which Ray knows
    # the host that they are on
    wait_s: float = 600.0  # that all may take to be ready, checksums of slots included

    def __post_init__(self) -> None:
        from embedcomp.kernels.routing import SLOTS  # which loads the engine

        refuse_below(self, shards=1, replicas=1, fronts=1, cpus=0.001, wait_s=1)
        if self.shards > SLOTS:
            raise BadSettings(
                f"shards is {self.shards}, but there are {SLOTS} slots to deal; give more replicas "
                "for more calls"
            )

    def refuse_ports(self, server: ServerSettings, hosts: int) -> None:
        """Raises BadSettings where two fronts would have one port of one host."""
        for name in ("port", "metrics_port"):
            port = getattr(server, name)
            if port and self.fronts > hosts:
                raise BadSettings(
                    f"fronts is {self.fronts}, but Ray has {hosts} hosts, and two fronts of one "
                    f"host cannot both have {name} {port}; give {name} 0, which takes free ones, "
                    "or fewer fronts"
                )


def of_shards(fronts: ServerSettings, host: str) -> ShardSettings:
    """How shards are served at an address to fronts, with metrics where those have some.

    Raises:
        BadSettings: rows are to go over TLS, and there is no certificate for shards to show.
    """
    plain = ShardSettings(
        host=host,
        port=0,
        metrics_port=None if fronts.metrics_port is None else 0,
        lookups=fronts.lookups,
        insecure=fronts.insecure,
    )
    if fronts.shard_tls_ca is None:
        return plain
    if fronts.tls_cert is None:
        raise BadSettings(
            "shard_tls_ca has rows travel over TLS, and shards show what fronts show to clients; "
            "give tls_cert and tls_key too"
        )
    return replace(
        plain,
        tls_cert=fronts.tls_cert,
        tls_key=fronts.tls_key,
        tls_client_ca=None if fronts.shard_tls_cert is None else fronts.shard_tls_ca,
    )
