"""The index of all runs, from `benchmarks.runs`."""

from __future__ import annotations

import re

from benchmarks.figures.markdown import table
from benchmarks.runs import RUNS, Run


def index() -> list[str]:
    """Each record's command, and the minutes that it takes on two cores."""
    rows = [[f"`{run.record}`", f"`{_command(run)}`", f"{run.minutes:,}"] for run in RUNS]
    head = ["record", "`python -m benchmarks.` ...", "minutes on two cores, about"]
    return table(head, rows, text=(0, 1))


def _command(run: Run) -> str:
    """Without the folders, which have defaults."""
    said = re.sub(r" --(data|work) \{\1\}(?!\S)", "", f" {run.arguments}")
    said = said.strip().replace("{work}", "build/benchmarks/COMMIT")
    return f"{run.script} {said}".strip()
