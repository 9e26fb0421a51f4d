"""Figures of `benchmarks.prediction`: how well predicted losses rank true ones."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record


def ranks(*records: Record) -> list[str]:
    """Spearman's correlations over all layers of each log."""
    head = ["log", "all 60", "those whose increase exceeds two standard errors"]
    head += ["against labels drawn from the original's scores"]
    rows = []
    for record in records:
        made = record["results"]
        clear = f"{made['spearman_clear']:.3f} ({made['clear']} options)"
        both = f"{made['spearman']:.3f}", clear, f"{made['spearman_expected']:.3f}"
        rows.append([record["data"]["name"], *both])
    return table(head, rows)
