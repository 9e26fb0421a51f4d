"""Figures of `benchmarks.known_ids`."""

from __future__ import annotations

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record


def tables(record: Record) -> list[str]:
    """Each table's bytes, millions of ids a second, and nanoseconds of a look-up."""
    times = [
        (found, str(batch)) for found in ("hit", "miss") for batch in record["data"]["batches"]
    ]
    rows = [
        [
            one["ids"],
            one["table"],
            f"{one['bytes']:.1f}",
            f"{one['ids_per_second'] / 1e6:.1f}",
            *(f"{one[f'{found}_nanoseconds'][batch]:,.0f}" for found, batch in times),
        ]
        for one in record["results"]
    ]
    head = ["ids", "table", "bytes an id", "million ids made a second"]
    return table([*head, *(f"{found}, {n} (ns)" for found, n in times)], rows, text=(0, 1))
