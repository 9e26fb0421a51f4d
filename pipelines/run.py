"""The driver of a job: `python -m embedcomp.pipelines.run JOB.toml`.

What it has to say goes to standard error; its result, a table, to standard output. Ends with 0, or
with 2 after a mistake of the user's, told in one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from embedcomp.errors import EmbedcompError
from embedcomp.pipelines.settings import located, refuse
from embedcomp.recipes.settings import JobSettings, read_job


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        settings = located(read_job(given.job, given.changes))
        refuse(settings)
        _run(settings, given.force)
    except EmbedcompError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same job again to go on", file=sys.stderr)
        return 130
    return 0


def _run(settings: JobSettings, force: bool) -> None:
    """Run the job and print its table.

    torch and Ray, which take many seconds to import, come in here: nobody waits for them to be told
    of a mistake.
    """
    from rich.console import Console

    from embedcomp.pipelines.cluster import connected
    from embedcomp.pipelines.job import Job
    from embedcomp.recipes.evaluate import render

    job = Job(settings, force=force)
    with connected():
        result = job.run()
    Console(width=None if sys.stdout.isatty() else 160).print(render(result["models"]))


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
