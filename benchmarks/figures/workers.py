"""Figures of `benchmarks.workers`."""

from __future__ import annotations

from typing import Any

from benchmarks.figures.markdown import plus_minus, table
from benchmarks.figures.record import Record

MB = 1e6
SPEED = ["rows a second", "s of the processor a million rows"]


def large(record: Record) -> list[str]:
    """Steps on large tables, by contender."""
    head = ["workers", *SPEED, "MB of tables a worker", "peak MB", "MB sent a step"]
    found = record["results"]["large"]
    return table(head, [[name, *_speed(one), *_memory(one)] for name, one in found.items()])


def on_log(*records: Record) -> list[str]:
    """Whole runs on the log, by contender."""
    head = ["workers", "validation AUC", *SPEED, "MB sent a step"]
    rows = [
        [name, plus_minus(one["auc"]), *_speed(one), _sent(one)]
        for record in records
        for name, one in record["results"]["log"].items()
    ]
    return table(head, rows)


def _speed(one: dict[str, Any]) -> list[str]:
    cpu = one["cpu_seconds_a_million_rows"]["mean"]
    return [f"{one['rows_per_second']['mean']:,.0f}", f"{cpu:.1f}"]


def _memory(one: dict[str, Any]) -> list[str]:
    sizes = [f"{one[name]['mean'] / MB:.0f}" for name in ("held_bytes", "peak_bytes")]
    return [*sizes, _sent(one)]


def _sent(one: dict[str, Any]) -> str:
    return f"{one['sent_bytes_a_step']['mean'] / MB:.2f}"
