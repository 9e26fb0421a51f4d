"""embedcomp compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedcomp.cli.options import Json, from_fields, show
from embedcomp.errors import BadSettings
from embedcomp.recipes.settings import CompareSettings, validated

WORDS: dict[Any, Any] = {("all",): None, ("none",): ()}  # of --alone, beside names of methods


@from_fields(
    CompareSettings,
    "models",
    "budgets",
    "methods",
    "alone",
    "seeds",
    "train_epochs",
    "from_log",
    "tune_epochs",
    "split",
)
def compare(
    out: Annotated[Path, typer.Option(help="Folder for the results, originals and report.")],
    given: dict[str, Any],
    log: Annotated[
        str | None, typer.Argument(help="Folder or URL with schema.toml; without, only --report.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.md, report.html and pictures into --out.")
    ] = False,
    json: Json = None,
) -> None:
    """Compare methods on models, budgets and seeds; goes on where it was stopped."""
    if log is None and not report:
        raise BadSettings("there is nothing to do: give a LOG to compare on, or --report")
    if log is not None:
        if (alone := given.get("alone")) in WORDS:
            given["alone"] = WORDS[alone]
        settings = validated(CompareSettings, given, "--set")

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
