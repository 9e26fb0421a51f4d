"""What a server counts, for Prometheus.

Where several workers share a port (workers.py), prometheus_client adds their numbers up by files,
so that any of them can tell those of all. What a model counts by itself is therefore told to it now
and then (`Metrics.publish`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import grpc
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from embedcomp.serving.models import READY, Models
from embedcomp.serving.served import Served
from embedcomp.serving.settings import METRICS_FOLDER
from embedcomp.support.metrics import SCORES

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)
OF = ("model", "version")
Mode = Literal["livemin", "livemax", "livesum"]  # how the gauges of several workers become one


class Metrics:
    """Counters of one server: of its calls, and of the versions that answer them."""

    def __init__(self, models: Models):
        self._make = make = _Make(CollectorRegistry())
        self._requests = make.counter(
            "embedcomp_requests", "Calls by what became of them.", "door", "code"
        )
        self._seconds = make.histogram(
            "embedcomp_request_duration_seconds",
            "From a call's arrival at its door to its answer.",
            SECONDS,
            "door",
        )
        self._queue = make.histogram(
            "embedcomp_queue_seconds", "That a call waits for its turn to be scored.", SECONDS
        )
        self._compute = make.histogram(
            "embedcomp_compute_seconds", "That a batch of calls is scored.", SECONDS
        )
        self._batch_rows = make.histogram("embedcomp_batch_rows", "Candidates in a batch.", ROWS)
        self._queued = make.gauge(
            "embedcomp_queued_rows", "Candidates that wait to be scored.", "livesum"
        )
        self._defaulted = make.counter(
            "embedcomp_defaulted_ids",
            "Ids whose shards gave no rows, so that unknown ones stood for them.",
            *OF,
        )
        self._versions = _Versions(models, make)
        self._shadows = _Shadows(make)
        self._of_call = cache(  # finding them anew takes longer than counting
            lambda door, code: (self._seconds.labels(door), self._requests.labels(door, code))
        )
        self._waiting: Callable[[], int] = lambda: 0
        self._publishing = threading.Lock()

    def called(self, door: str, code: grpc.StatusCode, seconds: float) -> None:
        """Note a call of a door, what became of it, and how long it took."""
        times, calls = self._of_call(door, code.name)
        times.observe(seconds)
        calls.inc()

    def refused(self, door: str) -> None:
        """Note a call that a door had no room for."""
        self._requests.labels(door, grpc.StatusCode.RESOURCE_EXHAUSTED.name).inc()

    def batch(self, rows: int, seconds: float) -> None:
        """Note what was scored in one turn, and how long that took."""
        self._batch_rows.observe(rows)
        self._compute.observe(seconds)

    def queued_for(self, seconds: float) -> None:
        """Note how long a call waited for its turn."""
        self._queue.observe(seconds)

    def defaulted(self, served: Served, ids: int) -> None:
        """Note ids whose rows could not be had."""
        self._defaulted.labels(*_labels(served)).inc(ids)

    def queued(self, rows: Callable[[], int]) -> None:
        """Ask this for the candidates that wait."""
        self._waiting = rows

    def shadowed(self, shadow: Served, differences: np.ndarray) -> None:
        """Note how far a shadow's scores are off, float32 [B]."""
        self._shadows.scored(shadow, differences)

    def not_shadowed(self, shadow: Served, reason: str) -> None:
        """Note a call that a shadow did not score."""
        self._shadows.missed(shadow, reason)

    def text(self) -> bytes:
        """Everything, of all workers, as Prometheus reads it."""
        self.publish()
        registry = self._make.registry
        if METRICS_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        found: bytes = generate_latest(registry)
        return found

    def publish(self) -> None:
        """Take over what the models have counted since the last time."""
        with self._publishing:
            self._queued.set(self._waiting())
            self._versions.publish()


class _Make:
    """Makes metrics of one registry."""

    def __init__(self, registry: CollectorRegistry):
        self.registry = registry

    def counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def histogram(self, name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, what, labels, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, what: str, mode: Mode, *labels: str) -> Gauge:
        return Gauge(name, what, labels, multiprocess_mode=mode, registry=self.registry)


class _Shadows:
    """How far the scores of versions that answer nobody are off those that were answered."""

    def __init__(self, make: _Make):
        self._rows = make.counter(
            "embedcomp_shadowed_rows", "Candidates that a shadow has scored as well.", *OF
        )
        self._difference = make.counter(
            "embedcomp_shadow_difference_sum",
            "Of how far a shadow's scores are off those that were answered.",
            *OF,
        )
        self._largest = make.gauge(
            "embedcomp_shadow_difference_max", "The largest of them.", "livemax", *OF
        )
        self._missed = make.counter(
            "embedcomp_not_shadowed",
            "Calls that a shadow was to score and did not.",
            *OF,
            "reason",
        )
        self._most: dict[tuple[str, str], float] = {}

    def scored(self, shadow: Served, differences: np.ndarray) -> None:
        of = _labels(shadow)
        self._rows.labels(*of).inc(len(differences))
        self._difference.labels(*of).inc(float(differences.sum(dtype=np.float64)))
        most = self._most[of] = max(self._most.get(of, 0.0), float(differences.max(initial=0.0)))
        self._largest.labels(*of).set(most)

    def missed(self, shadow: Served, reason: str) -> None:
        self._missed.labels(*_labels(shadow), reason).inc()


class _Versions:
    """What each version counts by itself, beside what is expected of it."""

    def __init__(self, models: Models, make: _Make):
        self._models = models
        self._told: dict[Served, _Told] = {}
        self._ready = make.gauge("embedcomp_version_ready", "1: it answers.", "livemin", *OF)
        self._current = make.gauge(
            "embedcomp_version_current", "1: it answers who asks for no version.", "livemin", *OF
        )
        self._resident = make.gauge(
            "embedcomp_resident_bytes",
            "Of the numbers that are read when it scores; workers share most of them.",
            "livemax",
            *OF,
        )
        self._rows = make.counter(
            "embedcomp_scored_rows",
            "Candidates by their score, which is at most `score` and above the one before.",
            *OF,
            "score",
        )
        self._sum = make.counter("embedcomp_scores_sum", "Of the scores of all candidates.", *OF)
        self._ids = make.counter("embedcomp_ids", "Ids that came.", *OF, "feature")
        self._unknown = make.counter(
            "embedcomp_unknown_ids", "Ids that came and were not trained on.", *OF, "feature"
        )
        self._expected = make.gauge(
            "embedcomp_expected_scores_ratio",
            "Share of scores in a bucket of embedcomp_scored_rows when the model was evaluated.",
            "livemax",
            *OF,
            "score",
        )
        self._expected_unknown = make.gauge(
            "embedcomp_expected_unknown_ids_ratio",
            "Share of unknown ids in the log that the model was trained on.",
            "livemax",
            *OF,
            "feature",
        )

    def publish(self) -> None:
        """Take over what was counted since the last time."""
        loaded = self._models.loaded()
        for state in self._models.states():
            self._ready.labels(state.name, str(state.version)).set(state.state == READY)
        for one in {**self._told, **dict.fromkeys(loaded)}:
            of, there = _labels(one), one in loaded
            self._current.labels(*of).set(self._models.current(one.name) is one)
            self._resident.labels(*of).set(there * sum(one.scorer.resident.values()))
            self._publish_counts(one, self._told.get(one) or self._first(one))
            if not there:
                del self._told[one]

    def _first(self, one: Served) -> _Told:
        """Begin to tell of a version: also what is expected of it."""
        of, proof = _labels(one), one.scorer.proof
        if proof is not None:
            for edge, share in zip(SCORES, proof.scores, strict=False):
                self._expected.labels(*of, f"{edge:g}").set(share)
            for feature, share in proof.unknown_ids.items():
                self._expected_unknown.labels(*of, feature).set(share)
        found = self._told[one] = _Told()
        return found

    def _publish_counts(self, one: Served, told: _Told) -> None:
        of = _labels(one)
        by_score, score_sum = one.counts.scores()
        for edge, rows in zip(SCORES, by_score - told.by_score, strict=True):
            self._rows.labels(*of, f"{edge:g}").inc(int(rows))
        self._sum.labels(*of).inc(score_sum - told.score_sum)
        told.by_score, told.score_sum = by_score, score_sum
        if one.scorer.seen is None:
            return
        seen, features = one.scorer.seen.copy(), one.scorer.features
        new = seen - (np.zeros_like(seen) if told.seen is None else told.seen)
        for feature, (ids, unknown) in zip(features.keys, new.tolist(), strict=True):
            self._ids.labels(*of, feature).inc(ids)
            self._unknown.labels(*of, feature).inc(unknown)
        told.seen = seen


def _labels(of: Served) -> tuple[str, str]:
    return of.name, str(of.version)


class _Told:
    """What was published of a version's counts."""

    def __init__(self) -> None:
        self.by_score: np.ndarray = np.zeros(len(SCORES), np.int64)
        self.score_sum = 0.0
        self.seen: np.ndarray | None = None
