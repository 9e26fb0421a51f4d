"""Figures of `benchmarks.planning_time`: how long a user waits for a plan."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

HEAD = ("log", "cores", "compress, s", "with all methods, s", "further budgets, s each")


def waits(*records: Record) -> list[str]:
    """Seconds of the whole command, and of plans for further budgets in one process."""
    rows = []
    for record in records:
        for cores, found in record["results"].items():
            _, *further = found["plans"].values()
            every = found.get("all_seconds")
            rows.append(
                [
                    record["data"]["name"],
                    cores,
                    f"{found['default_seconds']:.1f}",
                    "" if every is None else f"{every:.1f}",
                    ", ".join(f"{seconds:.1f}" for seconds in further),
                ]
            )
    return table(HEAD, rows, text=(0, 1, 4))
