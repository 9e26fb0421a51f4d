"""Figures of `benchmarks.training_speed`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.record import Record

MIB = 2**20


def speeds(record: Record) -> Iterator[float]:
    """Rows a second, times faster than each peer, on both logs; peak memory on globo_clicks."""
    for log in ("globo_clicks", "kuairand"):
        made = record["results"][log]
        yield made["tools"]["embedcomp"]["rows_per_second"]
        yield from (made["ratios"][peer] for peer in ("fuxictr", "deepctr-torch"))
    for tool in ("embedcomp", "fuxictr"):
        runs = record["results"]["globo_clicks"]["tools"][tool]["runs"]
        yield max(run["peak_bytes"] for run in runs) / MIB
