"""embedcomp deploy, deploy status and deploy down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from embedcomp.cli.options import Json, Precision, from_fields, show
from embedcomp.pipelines.deploying.settings import NOT_GIVEN, DeploySettings
from embedcomp.recipes.settings import validated
from embedcomp.serving.settings import ServerSettings

UP = "up"
Address = Annotated[str, typer.Option(help="HOST:PORT of the cluster's head, as `ray start` says.")]
Model = Annotated[
    str | None, typer.Argument(help="Name of a model; not given: of all.", metavar="[MODEL]")
]


class _UpByDefault(TyperGroup):
    """`deploy ARTIFACT` is `deploy up ARTIFACT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [UP, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_UpByDefault, no_args_is_help=True)


@contextmanager
def _deployment(address: str) -> Iterator[ModuleType]:
    """The verbs, within a connection to the cluster."""
    from embedcomp.pipelines.cluster import joined
    from embedcomp.pipelines.deploying import deployment
    from embedcomp.pipelines.deploying.names import NAMESPACE

    with joined(address, NAMESPACE):
        yield deployment


@app.command(UP)
@from_fields(ServerSettings, into="server", without=NOT_GIVEN)
@from_fields(DeploySettings)
def deploy(
    path: Annotated[
        Path,
        typer.Argument(
            help="Artifact that was cut, by a path that all hosts have.", metavar="ARTIFACT"
        ),
    ],
    given: dict[str, Any],
    server: dict[str, Any],
    address: Address,
    precision: Precision = None,
) -> None:
    """Serve an artifact by shards and fronts on Ray; run it again to have other numbers of them."""
    settings = validated(DeploySettings, given, "deploy")
    fronts = validated(ServerSettings, server, "deploy")
    with _deployment(address) as deployment:
        deployment.deploy(path, settings, fronts, precision, typer.echo)


@app.command()
def status(address: Address, model: Model = None, json: Json = None) -> None:
    """Print shards and fronts: where they are, what they hold, and whether they answer."""
    with _deployment(address) as deployment:
        found = deployment.status(model)
    table = Table("model", "what", "address", "metrics", "slots", "versions", "alive", "why")
    for one in found["servers"]:
        versions = " ".join(map(str, one["versions"]))
        where, slots = one["address"] or one["host"] or "-", one["slots"] or ""
        alive = "yes" if one["alive"] else "no"
        table.add_row(
            one["model"],
            one["what"],
            where,
            one["metrics"] or "",
            slots,
            versions,
            alive,
            one["why"],
        )
    show(found, [table], json)


@app.command()
def down(address: Address, model: Model = None) -> None:
    """End a model's fronts and shards, and wait until their ports are closed."""
    with _deployment(address) as deployment:
        deployment.down(model, typer.echo)
