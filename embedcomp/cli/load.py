"""embedcomp load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp.cli.options import Json, OfLog, Target, from_fields, show
from embedcomp.recipes.settings import validated
from embedcomp.serving.settings import AccessSettings, LoadSettings
from embedcomp.support.files import refuse_unwritable


@from_fields(LoadSettings)
@from_fields(AccessSettings, into="access")
def load(
    target: Target,
    log: OfLog,
    given: dict[str, Any],
    access: dict[str, Any],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a table and pictures of latency over load."),
    ] = None,
    json: Json = None,
) -> None:
    """Send real rows to a server at a rate and print latency, counted from each call's time."""
    settings = validated(LoadSettings, given, "load")
    way_in = validated(AccessSettings, access, "load")

    from embedcomp.log.click_log import ClickLog
    from embedcomp.recipes.progress import shown
    from embedcomp.serving.load import load as run
    from embedcomp.serving.load_report import refuse_undrawable, render, report

    if out is not None:
        refuse_undrawable()
        refuse_unwritable(out)
    with shown() as watch:
        found = run(target, ClickLog(log), settings, way_in, watch)
    show(found, render(found), json)
    if out is not None:
        for file in report(found, out):
            typer.echo(file, err=json == "-")
