"""embedcomp submit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Changes


def submit(
    job: Annotated[Path, typer.Argument(help="TOML file; docs/settings.md lists its keys.")],
    address: Annotated[str, typer.Option(help="Ray's dashboard, as http://HOST:8265.")],
    force: Annotated[bool, typer.Option(help="Run every step, changed or not.")] = False,
    changes: Changes = None,
) -> None:
    """Run a job on a Ray cluster, stream its log and end with its exit code."""
    from embedcomp.pipelines.submit import submit as run

    sys.exit(run(job, address, force=force, changes=changes or []))
