"""embedcomp evaluate and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Json, ServedWithin, show


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Models or artifacts, to compare.")],
    log: Annotated[str, typer.Option(help="Folder or URL with schema.toml.")],
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    budget: ServedWithin = None,
    json: Json = None,
) -> None:
    """AUC, log loss, calibration, bytes and speed on a split of a click log."""
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.log.click_log import ClickLog
    from embedcomp.recipes.evaluate import evaluate as measured
    from embedcomp.recipes.evaluate import render
    from embedcomp.recipes.progress import shown
    from embedcomp.support.progress import Counter

    clicks = ClickLog(log)
    opened = {str(path): Artifact.open(path) for path in models}
    if budget is not None:
        opened = {path: a.within(budget) for path, a in opened.items()}
    with shown() as watch:
        found = {
            name: measured(a.model(), clicks, a.features, split, a.folder)
            for name, a in Counter(watch, "evaluating", len(opened), "models").over(opened.items())
        }
    result = next(iter(found.values())) if len(found) == 1 else {"models": found}
    show(result, [render(found)], json)


def inspect(
    model: Annotated[Path, typer.Argument(help="Model or artifact.")], json: Json = None
) -> None:
    """Print what a model or artifact holds: features, layers, bytes and quality."""
    from embedcomp.artifact.artifact import Artifact
    from embedcomp.recipes.inspect import describe, render

    opened = Artifact.open(model)
    found = describe(opened)
    show(found, render(found, opened), json)
