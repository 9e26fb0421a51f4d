"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console, RenderableType

from embedcomp.errors import BadSettings
from embedcomp.support.described import meanings
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


def from_fields(settings: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a dataclass, in the place of its `settings`.

    An option has the field's name, type and default; its help is the comment beside the field.
    """
    types, told = get_type_hints(settings), meanings(settings)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[types[field.name], typer.Option(help=_sentence(told[field.name]))],
        )
        for field in dataclasses.fields(settings)
    ]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            values = {option.name: given.pop(option.name) for option in options}
            command(**given, settings=settings(**values))

        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in own
            if one.name != "settings"
        ]
        run.__signature__ = inspect.Signature([*kept, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*kept, *options]}
        return run

    return decorated


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


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
