"""Figures of `benchmarks.foreign`: models of other libraries, scored by themselves."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record


def models(record: Record) -> list[str]:
    """What scores each model, how far its scores are off, and how long planning took."""
    rows = []
    for name, made in record["results"].items():
        off = max(made["largest_difference"].values())
        engine = made["engine"].partition(",")[0]
        rows.append([name, engine, f"{off:.1e}", f"{made['planning_cpu_seconds']:.1f} s"])
    return table(["model", "scored by", "off by at most", "planning, CPU time"], rows, text=(0, 1))
