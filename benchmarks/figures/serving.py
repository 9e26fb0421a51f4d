"""Figures of `benchmarks.serving`, `benchmarks.overload` and `benchmarks.soak`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

IN_FLIGHT = "4"
NAMES = {
    "in process": "in process, no server",
    "embedcomp": "embedcomp, 20 times smaller",
    "kserve": "KServe, the original",
    "ray": "Ray Serve, the original",
    "triton": "Triton's Python backend, the original",
}


def rates(record: Record) -> list[str]:
    """Calls and rows a second, latency and CPU time of each server, four calls in flight."""
    found = record["results"]["medians"]
    head = ("server", "candidates", "calls/s", "rows/s", "p50 ms", "p99 ms", "CPU µs a call")
    rows = []
    for name, title in NAMES.items():
        for size, of in found.get(name, {}).items():
            one = of.get(IN_FLIGHT, of)
            if "calls_per_second" in one:
                rows.append([title, size, *_told(one)])
    return table(head, rows, text=(0, 1))


def _told(one: Mapping[str, float]) -> list[str]:
    latencies = [f"{one[p]:.2f}" if p in one else "" for p in ("p50_ms", "p99_ms")]
    counts = [f"{one[of]:,.0f}" for of in ("calls_per_second", "rows_per_second")]
    return [*counts, *latencies, f"{one['cpu_us_per_call']:,.0f}"]


def against(record: Record) -> list[str]:
    """Candidates a second over those of others, each with as many calls in flight as are best."""
    reached = record["results"]["aims"]["reached"]["rows_per_second"]
    sizes = list(next(iter(reached.values())))
    names = {f"times {name}": title.partition(",")[0] for name, title in NAMES.items()}
    rows = [
        [
            names[name],
            *(f"{of[size]:.1f}" if of[size] >= 2 else f"{of[size]:.2f}" for size in sizes),
        ]
        for name, of in reached.items()
    ]
    return table(["times", *sizes], rows)


def ten_features(record: Record) -> list[float]:
    """Server CPU microseconds of a call of 64 candidates with ten features."""
    return [record["results"]["aims"]["reached"]["cpu_us_per_call"]]


def overload(*records: Record) -> list[str]:
    """What became of calls at three times the capacity, by what the server was told."""
    head = (
        *("flags", "capacity calls/s", "served/s", "p50 ms", "p99 ms", "unloaded p99 ms"),
        *("refused p50 ms", "refused p99 ms", "MB more", "back after s"),
    )
    return table(head, [_overloaded(record) for record in records])


def _overloaded(record: Record) -> list[str]:
    found: Any = record["results"]
    over, unloaded = found["phases"]["over"], found["phases"]["unloaded"]
    figures = (
        *(found["capacity"]["calls_per_second"], over["served_per_second"]),
        *(over["served"]["p50_ms"], over["served"]["p99_ms"], unloaded["served"]["p99_ms"]),
        *(over["refused"]["p50_ms"], over["refused"]["p99_ms"]),
        *(found["grown_bytes"] / 1e6, found["back_after_seconds"]),
    )
    flags = " ".join(record["settings"]["serve"]) or "none"
    return [f"`{flags}`", *(f"{value:,.{0 if value >= 100 else 1}f}" for value in figures)]


def soak(record: Record) -> list[float]:
    """Calls, wrong scores, swaps, workers killed, calls sent again, and calls refused."""
    found = record["results"]
    return [
        found["calls"],
        found["wrong_scores"],
        len(found["swaps"]["seconds"]),
        found["killed_workers"],
        found["sent_again"],
        sum(found["failed"].values()),
    ]
