"""Figures of `benchmarks.resident`."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record


def ratios(record: Record) -> list[str]:
    """Time of products with decoded panels over that with float32 panels, by kind and batch."""
    kinds, batches = record["data"]["kinds"], record["data"]["batches"]
    rows = []
    for kind in kinds:
        cells = []
        for batch in batches:
            found = [
                run["times_slower"]
                for run in record["results"]
                if (run["kind"], run["batch"]) == (kind, batch)
            ]
            cells.append(f"{min(found):.2f} to {max(found):.2f}")
        rows.append([kind, *cells])
    return table(["stored as", *(f"{batch} rows" for batch in batches)], rows, text=(0,))
