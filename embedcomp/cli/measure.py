"""embedcomp measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Changes, Json, listed, show


def measure(
    model: Annotated[Path, typer.Argument(help="Model made by `embedcomp train`.")],
    log: Annotated[str, typer.Option(help="Folder or URL with schema.toml.")],
    options: Annotated[int, typer.Option(help="Options measured, of all layers together.")] = 60,
    rows: Annotated[int, typer.Option(help="Rows at most that each is measured on.")] = 200_000,
    split: Annotated[str, typer.Option(help="Split that these rows are of.")] = "valid",
    least: Annotated[
        float, typer.Option(help="Smallest predicted increase; 0: what the rows can tell.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Equal seeds take equal options.")] = 0,
    methods: Annotated[str, typer.Option(help="Methods to look at, comma-separated.")] = "",
    changes: Changes = None,
    json: Json = None,
) -> None:
    """How well predicted losses rank the true ones, which options swapped in one by one show."""
    from embedcomp.recipes.settings import CompressSettings, changed
    from embedcomp.swapping.settings import CheckSettings

    settings = changed(CompressSettings(budget="100%", methods=listed(methods)), changes or [])
    checking = CheckSettings(options=options, rows=rows, split=split, least=least, seed=seed)

    from embedcomp import recipes
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.recipes.progress import shown
    from embedcomp.support.progress import Doing
    from embedcomp.swapping.prediction import render, summary

    original, clicks = Artifact.open(model), ClickLog(log)
    with shown() as watch:
        watch(Doing("reading rows"))
        batches = recipes.rows_of(original, clicks, checking.split, checking.rows)
        read = sum(map(len, batches))
        measured = recipes.measure(original, clicks, settings, watch)
        chosen = recipes.options(original, measured, settings, checking, read, watch)
        found = recipes.check(original, measured, chosen, batches, watch)
    show(summary(found, read, split), render(found, read, split), json)
