"""Times of many calls, in memory that does not grow with them."""

from __future__ import annotations

import math
from collections import Counter

BINS = 200  # of a factor e: a bin is half a per cent wide
LEAST_S = 1e-6  # shorter times count as this


class Latencies:
    """A histogram of times, whose bins are half a per cent wide; the longest is kept as it is."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self.count, self.max = 0, 0.0

    def add(self, seconds: float) -> None:
        self._bins[int(BINS * math.log(max(seconds, LEAST_S) / LEAST_S))] += 1
        self.count += 1
        self.max = max(self.max, seconds)

    def merge(self, other: Latencies) -> None:
        """Add the times of another histogram."""
        self._bins.update(other._bins)
        self.count += other.count
        self.max = max(self.max, other.max)

    def percentile(self, per_cent: float) -> float:
        """The shortest time that this share of the calls does not exceed, in seconds."""
        left = max(1, math.ceil(per_cent / 100 * self.count))
        for place, calls in sorted(self._bins.items()):
            left -= calls
            if left <= 0:
                return min(LEAST_S * math.exp((place + 0.5) / BINS), self.max)
        return 0.0

    def summary(self) -> dict[str, float] | None:
        """Percentiles and the longest in milliseconds; None where there was no call."""
        if not self.count:
            return None
        found = {f"p{p}": 1000 * self.percentile(float(p)) for p in PERCENTILES}
        return found | {"max": 1000 * self.max}


PERCENTILES = ("50", "90", "99", "99.9")
