"""Figures of `benchmarks.slim`."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

MB = 1e6
SMALL = 5 * MB  # packages that take less are one line


def packages(record: Record) -> list[str]:
    """Megabytes of the image's environment by package, the largest first."""
    found = record["results"]["packages"]
    large = [one for one in found["by_size"] if one["bytes"] >= SMALL]
    rest = found["bytes"] - sum(one["bytes"] for one in large)
    rows = [[_name(one), f"{one['bytes'] / MB:.0f}"] for one in large]
    others = f"{len(found['by_size']) - len(large)} others"
    rows += [[others, f"{rest / MB:.0f}"], ["all", f"{found['bytes'] / MB:.0f}"]]
    return table(["package", "MB"], rows)


def _name(one: dict[str, Any]) -> str:
    return one["name"] if one["imported"] else f"{one['name']} (not imported)"


def starts(record: Record) -> list[float]:
    """Seconds to ready: the first start, and the others' median."""
    found = record["results"]["starts"]
    return [found["first"], median(found["others"])]


def memory(record: Record) -> list[float]:
    """Megabytes of the artifact, of one server, of four, and of each after the first."""
    one, four = record["results"]["memory"]
    first, all_four = one["proportional_bytes"], four["proportional_bytes"]
    figures = (record["data"]["artifact_bytes"], first, all_four, (all_four - first) / 3)
    return [value / MB for value in figures]
