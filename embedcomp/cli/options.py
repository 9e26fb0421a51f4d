"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.console import Console, RenderableType

from embedcomp.errors import BadSettings
from embedcomp.recipes.settings import read_changes
from embedcomp.support.fields import meanings
from embedcomp.support.files import refuse_unwritable, replacing

Json = Annotated[
    str | None, typer.Option("--json", help="Write the result as JSON to this file; - prints it.")
]
Precision = Annotated[
    str | None,
    typer.Option(help="Of products: float32, bfloat16 or int8; not given: as the artifact says."),
]
ServedWithin = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Bytes to cut the model to by its layers of ordered ranks, as 300kB, or a share of "
        "the original, as 20x; not given: it is served in full. `embedcomp inspect` lists the "
        "sizes that there are.",
    ),
]
OfLog = Annotated[str, typer.Option(help="Folder or URL with schema.toml.")]
Target = Annotated[str, typer.Option(help="HOST:PORT of a server.")]
Trained = Annotated[Path, typer.Argument(help="Model made by `embedcomp train`.")]
DryRun = Annotated[bool, typer.Option(help="Print what is planned and stop; needs no --out.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, as name=value; docs/settings.md lists them."),
]
CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
CHANGES = inspect.Parameter(
    "changes", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Changes
)
NOT_SHOWN = (dataclasses.MISSING, None, "", ())  # defaults whose meaning the help says


def from_fields(
    settings: type[Any], *names: str, into: str = "given", without: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a dataclass, or for those that are named.

    An option has its field's name, type and default, and its help is the comment beside the field.
    The name "tune.epochs" is the field `epochs` of the field `tune`, and the option --tune-epochs.
    Where fields are named, --set changes the others.

    Args:
        into: argument of the command that takes what was given, as `validated` takes it.
        without: fields that the command itself sets, which are no options.
    """
    every_name = [f.name for f in dataclasses.fields(settings) if f.name not in without]
    fields = {name.replace(".", "_"): _field(settings, name) for name in names or every_name}
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.option
        )
        for name, one in fields.items()
    ]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        above = CONTEXT.name in own  # it has options of other settings already

        @wraps(command)
        def run(context: typer.Context, **arguments: Any) -> None:
            values: dict[str, Any] = {}
            for name, one in fields.items():
                value, source = arguments.pop(name), context.get_parameter_source(name)
                if source is not None and source.name != "DEFAULT":
                    one.put(values, value)
            if names:
                values = read_changes(arguments.pop("changes") or [], values)
            if above:
                arguments[CONTEXT.name] = context
            command(**arguments, **{into: values})

        kept = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in own.values()
            if one.name not in (into, CONTEXT.name)
        ]
        every = [CONTEXT, *kept, *options, *([CHANGES] if names else [])]
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in every}
        return run

    return decorated


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field of settings as an option: the way to it, and what typer reads."""

    path: Sequence[str]
    several: bool  # written with commas between them, or as the same option several times
    option: Any
    default: Any  # shown in the help

    def put(self, values: dict[str, Any], given: Any) -> None:
        """Add what was given to `values`."""
        *above, last = self.path
        for name in above:
            values = values.setdefault(name, {})
        values[last] = listed(",".join(given)) if self.several else given


def _field(settings: type[Any], name: str) -> _Field:
    *above, last = path = name.split(".")
    for outer in above:
        settings = get_type_hints(settings)[outer]
    (kind, *_) = [k for k in _either(get_type_hints(settings)[last]) if k is not type(None)]
    several = get_origin(kind) is tuple
    field = next(field for field in dataclasses.fields(settings) if field.name == last)
    default: Any = field.default
    if several and default:
        default = [",".join(map(str, default))]
    text = meanings(settings)[last] + (" (comma-separated)" if several else "")
    help_text = f"{text[:1].upper()}{text[1:]}."
    one = kind if kind in (bool, int, float) else str  # which of several words, `validated` tells
    taken: Any = list[str] if several else one
    option = typer.Option(help=help_text)
    return _Field(
        path, several, Annotated[taken | None, option], None if default in NOT_SHOWN else default
    )


def _either(hint: Any) -> tuple[Any, ...]:
    """The kinds that a type hint allows."""
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


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
