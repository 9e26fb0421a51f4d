"""Figures of `benchmarks.low_rank_speed`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.record import Record, claim

MIB = 2**20


def speeds(record: Record) -> Iterator[float]:
    """Seconds, and times faster than numpy, of each; then memory beyond the table."""
    made, numpy = record["results"], record["results"]["numpy_svd"]
    yield from (_seconds(made, "embedcomp_counts"), _times(made, "embedcomp_counts"))
    yield numpy["seconds"]
    for name in ("embedcomp_uniform", "torch_svd_lowrank", "embedcomp_svd"):
        yield from (_seconds(made, name), _times(made, name))
    same = abs(made["embedcomp_svd"]["error"] - numpy["error"]) < 0.00001
    claim(same, "svd has numpy's error to five digits")
    for name in ("embedcomp_counts", "numpy_svd"):
        yield made[name]["added_bytes"] / MIB


def _seconds(made: Record, name: str) -> float:
    seconds: float = made[name]["seconds"]
    return seconds


def _times(made: Record, name: str) -> float:
    times: float = made[name]["times_faster_than_numpy"]
    return times
