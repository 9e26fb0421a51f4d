"""embedcomp cut and shard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp.cli.options import from_fields
from embedcomp.recipes.settings import validated
from embedcomp.serving.shards.settings import ShardSettings
from embedcomp.sharding.cutting import slots_in


def cut(
    path: Annotated[Path, typer.Argument(help="Artifact to cut.", metavar="ARTIFACT")],
    out: Annotated[Path, typer.Option(help="Folder that gets a new version.")],
    near_bytes: Annotated[
        int,
        typer.Option(
            help="Bytes of each table that stay with the front: small tables, and the first rows "
            "of the others."
        ),
    ] = 1 << 20,
) -> None:
    """Cut the large tables of an artifact into 256 slots, for shards to hold."""
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.recipes.progress import shown
    from embedcomp.sharding import cut as cutting
    from embedcomp.sharding.cutting import Cutting

    with shown() as watch:
        made = cutting.cut(Artifact.open(path), out, near_bytes=near_bytes, watch=watch)
    found = Cutting.of(made.folder)
    assert found is not None
    for name, table in found.tables.items():
        typer.echo(
            f"{name}: {table.ids:,} ids, {table.bytes:,} bytes in slots; the front has the first "
            f"{table.near:,}"
        )
    typer.echo(f"written to {made.folder}")


@from_fields(ShardSettings)
def shard(
    path: Annotated[Path, typer.Argument(help="Artifact that was cut.", metavar="ARTIFACT")],
    given: dict[str, Any],
) -> None:
    """Hold some slots of a model until SIGTERM, and give their rows to `serve --shards`."""
    settings = validated(ShardSettings, given, "shard")
    slots = slots_in(settings.slots)

    from embedcomp.serving.shards.server import serve_shard

    serve_shard(path, slots, settings)
