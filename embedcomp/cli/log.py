"""embedcomp log: synth and profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Json, show

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
def profile(
    log: Annotated[str, typer.Argument(help="Folder or URL with schema.toml.")],
    split: Annotated[str, typer.Option(help="Split to look at.")] = "train",
    json: Json = None,
) -> None:
    """Print columns, cardinalities, nulls, positive rate and tail mass."""
    from embedcomp.log.click_log import ClickLog
    from embedcomp.log.counts import count
    from embedcomp.log.profile import profile as look
    from embedcomp.log.profile import render

    clicks = ClickLog(log)
    found = look(clicks, count(clicks, clicks.pieces(split)), split)
    show(found, render(found), json)
