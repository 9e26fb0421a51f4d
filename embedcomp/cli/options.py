"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from embedcomp.support.files import replacing

Json = Annotated[
    str | None, typer.Option("--json", help="Write the result as JSON to this file; - prints it.")
]
Precision = Annotated[
    str | None,
    typer.Option(help="Of products: float32, bfloat16 or int8; not given: as the artifact says."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, as name=value; docs/settings.md lists them."),
]


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
