"""The driver of a job: `python -m embedcomp.pipelines.run JOB.toml`.

What it has to say goes to standard error; its result, a table, to standard output. Ends with 0, or
with 2 after a mistake of the user's, told in one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from embedcomp.errors import EmbedcompError
from embedcomp.pipelines.cluster import connected
from embedcomp.pipelines.job import Job, located
from embedcomp.recipes.evaluate import render
from embedcomp.recipes.settings import read_job


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        settings = located(read_job(given.job, given.changes))
        job = Job(settings, force=given.force)  # refuses what cannot be, before Ray starts
        with connected():
            result = job.run()
    except EmbedcompError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same job again to go on", file=sys.stderr)
        return 130
    Console(width=None if sys.stdout.isatty() else 160).print(render(result["models"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    prog = "python -m embedcomp.pipelines.run"
    parser = argparse.ArgumentParser(prog=prog, description="Run a job.")
    parser.add_argument("job", type=Path, help="TOML file; its keys are JobSettings' fields")
    parser.add_argument("--force", action="store_true", help="run every step, changed or not")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, as train.epochs=3",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
