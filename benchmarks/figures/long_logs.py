"""Figures of `benchmarks.long_logs`: logs that grow."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

MIB = 2**20


def steps(*records: Record) -> list[str]:
    """Time and memory of each step, by rows of the log, over the logs of all records."""
    head = ["rows", "distinct users", "step", "seconds", "rows a second", "peak memory"]
    lines = []
    logs = [log for record in records for log in record["results"].items()]
    for rows, made in logs:
        users = made["count"]["distinct"]["user"]
        for kind, taken in made.items():
            first = kind == "count"
            lines.append(
                [
                    f"{int(rows):,}" if first else "",
                    f"{users:,}" if first else "",
                    "train, no epoch" if kind == "train" and not taken["epochs"] else kind,
                    f"{taken['seconds']:.1f}",
                    f"{taken['rows_per_second']:,.0f}",
                    f"{taken['peak_bytes'] / MIB:,.0f} MiB",
                ]
            )
    return table(head, lines, text=(2,))
