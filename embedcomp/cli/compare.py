"""embedcomp compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Changes, Json, listed, show


def compare(
    out: Annotated[Path, typer.Option(help="Folder for the results, originals and report.")],
    log: Annotated[
        str | None, typer.Argument(help="Folder or URL with schema.toml; without, only --report.")
    ] = None,
    models: Annotated[str, typer.Option(help="Comma-separated, as of `embedcomp train`.")] = "",
    methods: Annotated[
        str, typer.Option(help="Of the planned mix, comma-separated, or all; else those that pay.")
    ] = "",
    alone: Annotated[
        str, typer.Option(help="Which are also compared one by one: all, none, comma-separated.")
    ] = "all",
    budgets: Annotated[str, typer.Option(help="Comma-separated, each as of `compress`.")] = "5x",
    seeds: Annotated[int, typer.Option(help="How many.")] = 1,
    tune_epochs: Annotated[
        str, typer.Option(help="Comma-separated; 0 is not tuned, others have their own control.")
    ] = "0",
    split: Annotated[
        str, typer.Option(help="Split to score; test once nothing is chosen by it any more.")
    ] = "valid",
    report: Annotated[
        bool, typer.Option("--report", help="Write report.md, report.html and pictures into --out.")
    ] = False,
    changes: Changes = None,
    json: Json = None,
) -> None:
    """Compare methods on models, budgets and seeds; goes on where it was stopped."""
    from embedcomp.errors import BadSettings
    from embedcomp.recipes.settings import CompareSettings, read_changes, validated

    if log is None and not report:
        raise BadSettings("there is nothing to do: give a LOG to compare on, or --report")
    if log is not None:
        given = {
            "models": listed(models),
            "budgets": listed(budgets),
            "methods": listed(methods),
            "alone": None if alone == "all" else () if alone == "none" else listed(alone),
            "seeds": seeds,
            "tune_epochs": listed(tune_epochs),
            "split": split,
        }
        settings = validated(CompareSettings, {**given, **read_changes(changes or [])}, "--set")

        from embedcomp.compare.report import tables
        from embedcomp.compare.run import compare as run
        from embedcomp.compare.sections import sections
        from embedcomp.log.click_log import ClickLog
        from embedcomp.recipes.progress import counted

        with counted() as progress:
            records = run(ClickLog(log), settings, out, progress)
        found = [record.model_dump() for record in records]
        show({"results": found}, tables(sections(records)), json)
    if report:
        from embedcomp.compare.report import report as written

        for file in written(out):
            typer.echo(file, err=json == "-")
