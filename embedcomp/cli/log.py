"""embedcomp log: synth, profile, and counts that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcomp.cli.options import Json, from_fields, show
from embedcomp.recipes.settings import CountSettings, validated

if TYPE_CHECKING:
    from embedcomp.log.kept import Entry

app = typer.Typer(no_args_is_help=True)


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Folder to write the log into.")],
    rows: Annotated[int, typer.Option(help="Rows of all splits together.")],
    seed: Annotated[int, typer.Option(help="Equal seeds write equal logs.")] = 0,
    drift: Annotated[
        bool, typer.Option("--drift", help="Split by time; what ids stand for lives for hours.")
    ] = False,
    json: Json = None,
) -> None:
    """Write a made-up log: Zipf ids and clicks from a low-rank teacher, whose AUC is printed."""
    from embedcomp.log.synth import synth as write

    result = write(folder, rows, seed, drift=drift)
    show(
        result.to_dict(),
        [
            f"{folder}: {rows:,} rows; the teacher's own test AUC, which no model can pass, is "
            f"{result.auc:.5f} (log loss {result.logloss:.5f})"
        ],
        json,
    )


@app.command()
@from_fields(CountSettings, into="counting")
def profile(
    log: Annotated[str, typer.Argument(help="Folder or URL with schema.toml.")],
    counting: dict[str, Any],
    split: Annotated[str, typer.Option(help="Split to look at.")] = "train",
    json: Json = None,
) -> None:
    """Print columns, cardinalities, nulls, positive rate and tail mass."""
    settings = validated(CountSettings, counting, "profile")

    from embedcomp.log.click_log import ClickLog
    from embedcomp.log.kept import counted
    from embedcomp.log.profile import profile as look
    from embedcomp.log.profile import render

    clicks = ClickLog(log)
    with counted(clicks, split, settings.count_bytes, settings.counts) as counts:
        found = look(clicks, counts, split)
    show(found, render(found), json)


Counts = Annotated[str, typer.Argument(help="Folder or URL that --counts named.")]


@app.command()
def counts(folder: Counts, json: Json = None) -> None:
    """List the files whose counts are kept."""
    from embedcomp.log.kept import entries

    _show_kept(folder, entries(folder), "kept", json)


@app.command()
def forget(
    folder: Counts,
    pattern: Annotated[str, typer.Argument(help="Files within the log, as 'day=2026-01-*'.")],
    json: Json = None,
) -> None:
    """Delete kept counts of files, so that they count no more."""
    from embedcomp.log.kept import forget as gone

    _show_kept(folder, gone(folder, pattern), "forgotten", json)


def _show_kept(folder: str, found: list[Entry], what: str, json: str | None) -> None:
    rows = sum(entry.rows for entry in found)
    files = [{"file": entry.file, "rows": entry.rows, "bytes": entry.size} for entry in found]
    lines = [f"{entry.file}: {entry.rows:,} rows" for entry in found]
    show(
        {"folder": folder, what: files},
        [*lines, f"{folder}: {len(found):,} files {what}, {rows:,} rows"],
        json,
    )
