"""Figures of `benchmarks.latency`: predicted and measured times of plans within latency budgets."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.record import Record


def summary(record: Record) -> Iterator[float]:
    """Plans; how far off predictions are, in percent; plans in time at first and at last.

    Of predictions: the median and nine in ten of plans, the median of originals, and of the noise
    of measuring.
    """
    found = record["results"]["summary"]
    yield found["plans"]
    plans = found["measured_against_predicted"]
    yield 100 * plans["median"]
    yield 100 * plans["nine_in_ten"]
    yield 100 * found["the_same_of_originals"]["median"]
    yield 100 * found["noise"]["median"]
    yield found["in_time_at_first"]
    yield found["in_time_at_last"]
    yield 100 * (found["times_allowed_at_last"]["worst"] - 1)
