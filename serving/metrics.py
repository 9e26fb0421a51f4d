"""What a server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from embedcomp.serving.models import READY, Models

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """Counters of one server, and what its models say of themselves when they are asked."""

    def __init__(self, models: Models):
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "embedcomp_requests",
            "Calls by what became of them.",
            ("door", "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "embedcomp_request_duration_seconds",
            "From a call's arrival at its door to its answer.",
            ("door",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_OfModels(models))

    @contextmanager
    def call(self, door: str) -> Iterator[Call]:
        """Count a call of a door, its time, and what becomes of it."""
        began, found = time.perf_counter(), Call()
        try:
            yield found
        finally:
            self._seconds.labels(door).observe(time.perf_counter() - began)
            self._requests.labels(door, found.code.name).inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        found: bytes = generate_latest(self.registry)
        return found


class Call:
    """What becomes of one call."""

    code: grpc.StatusCode = grpc.StatusCode.OK


class _OfModels(Collector):
    """What versions there are, what they take, and what they gave."""

    def __init__(self, models: Models):
        self._models = models

    def collect(self) -> Iterable[Metric]:
        of = ("model", "version")
        ready = GaugeMetricFamily("embedcomp_version_ready", "1: it answers.", labels=of)
        current = GaugeMetricFamily(
            "embedcomp_version_current", "1: it answers who asks for no version.", labels=of
        )
        resident = GaugeMetricFamily(
            "embedcomp_resident_bytes", "Of the numbers that are read when it scores.", labels=of
        )
        rows = GaugeMetricFamily("embedcomp_version_rows", "Rows that it has scored.", labels=of)
        mean = GaugeMetricFamily("embedcomp_version_mean_score", "Mean of its scores.", labels=of)
        for state in self._models.states():
            ready.add_metric([state.name, str(state.version)], state.state == READY)
        for one in self._models.loaded():
            labels = [one.name, str(one.version)]
            current.add_metric(labels, self._models.current(one.name) is one)
            resident.add_metric(labels, sum(one.scorer.resident.values()))
            rows.add_metric(labels, one.counts.rows)
            if one.counts.rows:
                mean.add_metric(labels, one.counts.score_sum / one.counts.rows)
        return [ready, current, resident, rows, mean]
