"""embedcomp serve and predict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp.cli.options import Json, Precision, ServedWithin, from_fields, show
from embedcomp.recipes.settings import validated
from embedcomp.serving.settings import ServerSettings


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

    opened = partial(Scorer.open, precision=precision, budget=budget)
    if settings.workers > 1:
        from embedcomp.serving.workers import serve_by_workers

        serve_by_workers(paths, settings, opened)
        return
    from embedcomp.serving.repository import Repository
    from embedcomp.serving.server import serve as run

    run(Repository(paths, settings, opened), settings)


def predict(
    target: Annotated[str, typer.Option(help="HOST:PORT of a server.")],
    log: Annotated[str, typer.Option(help="Folder or URL with schema.toml.")],
    split: Annotated[str, typer.Option(help="Split whose rows are sent.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Rows at most.")] = None,
    batch_rows: Annotated[int, typer.Option(help="Rows a request.")] = 256,
    in_flight: Annotated[int, typer.Option(help="Requests at a time.")] = 4,
    tls: Annotated[bool, typer.Option("--tls", help="Talk over TLS.")] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Certificates that the server's is signed by one of.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate to show.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that calls bring.")
    ] = None,
    json: Json = None,
) -> None:
    """Send rows of a log to a server and print AUC, throughput and latency."""
    from embedcomp.log.click_log import ClickLog
    from embedcomp.serving.client import Client, token_of
    from embedcomp.serving.predict import predict_log, render

    token = "" if token_file is None else token_of(token_file)
    with Client(target, tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, token=token) as client:
        found = predict_log(
            client, ClickLog(log), split, limit, batch_rows=batch_rows, in_flight=in_flight
        )
    show(found, [render(found)], json)
