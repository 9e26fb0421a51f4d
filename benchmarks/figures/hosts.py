"""Figures of `benchmarks.hosts`."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record, claim


def stages(record: Record) -> list[str]:
    """What calls saw of what was done, in its order."""
    found = record["results"]["stages"]
    claim(not any(one["wrong"] for one in found), "no score was wrong")
    rows = [
        [
            one["stage"],
            f"{one['calls']:,}",
            f"{one['wrong']:,}",
            f"{one['failed']:,}",
            f"{one['slowest_ms']:.0f}",
            "" if one["whole_s"] is None else f"{one['whole_s']:.1f}",
        ]
        for one in found
    ]
    head = ["what happens", "calls", "wrong", "failed", "slowest ms", "whole again after s"]
    return table(head, rows)
