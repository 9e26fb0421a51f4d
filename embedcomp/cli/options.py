"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from embedcomp.errors import BadSettings
from embedcomp.support.files import refuse_unwritable, replacing

Json = Annotated[
    str | None, typer.Option("--json", help="Write the result as JSON to this file; - prints it.")
]
Precision = Annotated[
    str | None,
    typer.Option(help="Of products: float32, bfloat16 or int8; not given: as the artifact says."),
]
OfLog = Annotated[str, typer.Option(help="Folder or URL with schema.toml.")]
Trained = Annotated[Path, typer.Argument(help="Model made by `embedcomp train`.")]
Solver = Annotated[str, typer.Option(help="Of plans: exact, highs, greedy, welore or farms.")]
TuneEpochs = Annotated[int, typer.Option(help="Epochs of distillation afterwards.")]
Methods = Annotated[
    str,
    typer.Option(help="Methods that plans may use, comma-separated, or all; else those that pay."),
]
DryRun = Annotated[bool, typer.Option(help="Print what is planned and stop; needs no --out.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, as name=value; docs/settings.md lists them."),
]


def target(out: Path | None, dry_run: bool) -> Path | None:
    """Where results go; None: nowhere, in a dry run.

    Raises:
        BadSettings: nothing is given, or nothing can be written there.
    """
    if dry_run:
        return None
    if out is None:
        raise BadSettings("there is nowhere to write; give --out, or --dry-run for plans alone")
    refuse_unwritable(out)
    return out


def listed(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def show(result: dict[str, Any], tables: Iterable[RenderableType], target: str | None) -> None:
    """Print tables, or the result as JSON and nothing else where `target` is "-"."""
    if target == "-":
        json.dump(result, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in tables:
        console.print(table)
    if target is not None:
        with replacing(Path(target)) as fresh:
            fresh.write_text(json.dumps(result, indent=1) + "\n")
