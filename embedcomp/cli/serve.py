"""embedcomp serve and predict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp.cli.options import Json, OfLog, Precision, ServedWithin, Target, from_fields, show
from embedcomp.errors import BadSettings
from embedcomp.recipes.settings import validated
from embedcomp.serving.settings import AccessSettings, ServerSettings


@from_fields(ServerSettings)
def serve(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Artifacts, models, or folders of models.", metavar="PATH..."),
    ],
    given: dict[str, Any],
    precision: Precision = None,
    budget: ServedWithin = None,
) -> None:
    """Serve models over gRPC until SIGTERM."""
    settings = validated(ServerSettings, given, "serve")

    from embedcomp.scorer.scorer import Scorer

    opened = partial(Scorer.open, precision=precision, budget=budget, lookups=settings.lookups)
    if settings.shards:
        from embedcomp.serving.shards.rows import finds

        opened = partial(opened, shards=finds(settings))
    elif settings.shard_tls_ca is not None:
        raise BadSettings("shard_tls_ca is of shards, and none are named; give --shards too")
    if settings.workers > 1:
        from embedcomp.serving.workers import serve_by_workers

        serve_by_workers(paths, settings, opened)
        return
    from embedcomp.serving.repository import Repository
    from embedcomp.serving.server import serve as run

    run(lambda: Repository(paths, settings, opened), settings)


@from_fields(AccessSettings, into="access")
def predict(
    target: Target,
    log: OfLog,
    access: dict[str, Any],
    split: Annotated[str, typer.Option(help="Split whose rows are sent.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Rows at most.")] = None,
    batch_rows: Annotated[int, typer.Option(help="Rows a request.")] = 256,
    in_flight: Annotated[int, typer.Option(help="Requests at a time.")] = 4,
    json: Json = None,
) -> None:
    """Send rows of a log to a server and print AUC, throughput and latency."""
    way_in = validated(AccessSettings, access, "predict")

    from embedcomp.log.click_log import ClickLog
    from embedcomp.serving.access import arguments
    from embedcomp.serving.client import Client
    from embedcomp.serving.predict import predict_log, render

    with Client(target, **arguments(way_in)) as client:
        found = predict_log(
            client, ClickLog(log), split, limit, batch_rows=batch_rows, in_flight=in_flight
        )
    show(found, [render(found)], json)
