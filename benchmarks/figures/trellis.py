"""Figures of `benchmarks.trellis`."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record


def normal(record: Record) -> list[str]:
    """What is left of the variance of normal values, in 1 to 5 bits."""
    rows = []
    for made in record["results"]["normal"][:5]:
        left = (made[name] for name in ("steps", "trellis", "bound"))
        rows.append([str(made["bits"]), *(f"{value:.4f}" for value in left)])
    return table(["bits", "single steps", "trellis", "least possible"], rows, text=())
