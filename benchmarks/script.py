"""What every script shares: its options, the click logs, a user's mistakes, the console."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.child import ROOT, ChildFailed
from benchmarks.result import RESULTS, source
from embedcomp.errors import BadLog, EmbedcompError
from embedcomp.log.click_log import ClickLog

DATA = ROOT / ".." / "shared" / "data"
WORK = ROOT / "build" / "benchmarks" / source().name  # what is done by one program

console = Console(stderr=True, width=120, highlight=False)


def parser(text: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    """A parser that describes itself by `text` and has the options of every script.

    Args:
        data: the script reads click logs.
    """
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the result file")
    if data:
        made.add_argument("--data", type=Path, default=DATA, help="folder with the click logs")
    return made


def open_log(data: Path, name: str) -> ClickLog:
    """The click log in the folder `name` of `data`.

    Raises:
        BadLog: there is none.
    """
    folder = data / name
    if not (folder / "schema.toml").exists():
        raise BadLog(
            f"there is no click log {name!r} in {data}; give the folder that holds it with --data "
            "(these logs are public but not all may be passed on, so embedcomp brings none)"
        )
    return ClickLog(str(folder.resolve()))


def command(main: Callable[[], None]) -> None:
    """Run a script; a user's mistake or a step that failed is one sentence and exit code 2."""
    try:
        main()
    except (EmbedcompError, ChildFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
