"""embedcomp bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcomp.cli.options import Json, Precision, ServedWithin, show


def bench(
    artifact: Annotated[Path, typer.Argument(help="Artifact or model.")],
    against: Annotated[
        Path | None, typer.Option(help="Another artifact or model, scored in turn with it.")
    ] = None,
    precision: Precision = None,
    budget: ServedWithin = None,
    json: Json = None,
) -> None:
    """Rows/s and microseconds a call by batch size, and the share of what this machine could do."""
    import os

    from embedcomp.scorer.bench import bench as measured
    from embedcomp.scorer.bench import render, to_dict
    from embedcomp.scorer.scorer import Scorer

    found = []
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        opened = Scorer.open(artifact, threads=threads, precision=precision, budget=budget)
        scorers = {"artifact": opened}
        if against is not None:
            scorers["against"] = Scorer.open(against, threads=threads)
        found += measured(scorers, threads)
    show(to_dict(found, scorers), render(found, scorers), json)
