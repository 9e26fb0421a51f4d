"""Figures of `benchmarks.ray_count`."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.figures.record import Record, claim


def seconds(record: Record) -> Iterator[float]:
    """Median seconds of plain tasks and of Ray Data."""
    tasks, data = (
        median(record["results"][name]["seconds"]["values"]) for name in ("tasks", "ray_data")
    )
    claim(tasks < data, "plain tasks are faster than Ray Data")
    yield from (tasks, data)
