"""Dashboard, alerts and autoscaling ask for what a server counts."""

from __future__ import annotations

import json
import runpy
import urllib.request
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from manifests import ROOT, dashboard, expressions
from prometheus_client.parser import text_string_to_metric_families
from toy_scorer import ToyScorer

from embedcomp.serving.client import Client
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings

promql = pytest.importorskip("promql_parser", reason="extra dev: promql-parser")
OF_TARGET = {"namespace", "pod", "le"}  # Prometheus' own labels of a pod, and of a bucket
# What servers do not count yet, with its labels: empty once they do.
BEING_ADDED: dict[str, set[str]] = {
    "embedcomp_queue_seconds_bucket": set(),
    "embedcomp_compute_seconds_bucket": set(),
    "embedcomp_batch_rows_bucket": set(),
    "embedcomp_queued_rows": set(),
    "embedcomp_ids_total": {"model", "version", "feature"},
    "embedcomp_unknown_ids_total": {"model", "version", "feature"},
    "embedcomp_scores_bucket": {"model", "version"},
    "embedcomp_scores_sum": {"model", "version"},
    "embedcomp_scores_count": {"model", "version"},
    "embedcomp_worker_restarts_total": set(),
}
EVERY = [pytest.param(expression, id=name) for name, expression in expressions()]


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, set[str]]]:
    """Names and labels of what a server says once it was called."""
    settings = ServerSettings(port=0, metrics_port=0)
    toy: Any = ToyScorer()
    with ScoringServer(Models.of(settings, toy), settings) as server:
        columns = {
            "user_id": pa.array([10]),
            "city": pa.array(["Basel"]),
            "genres": pa.array([[1]]),
            "tags": pa.array([["a"]]),
            "age": pa.array([31.5], pa.float32()),
            "price": pa.array([7]),
        }
        with Client(f"127.0.0.1:{server.port}") as client:
            client.predict(pa.RecordBatch.from_pydict(columns))
        address = f"http://127.0.0.1:{server.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=20) as answer:
            text = answer.read().decode()
        yield {
            sample.name: set(sample.labels)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.mark.server
@pytest.mark.parametrize("expression", EVERY)
def test_a_server_counts_what_is_asked_for(expression: str, counted: dict[str, set[str]]) -> None:
    read = promql.parse(expression)
    asked = _selectors(read)
    assert asked
    for name, matched in asked:
        labels = (counted | BEING_ADDED)[name] | OF_TARGET
        assert matched <= labels, name
    for grouped, names in _groups(read):
        for name in names:
            assert grouped <= (counted | BEING_ADDED)[name] | OF_TARGET, name


@pytest.mark.server
def test_what_is_counted_is_not_said_to_be_added(counted: dict[str, set[str]]) -> None:
    assert not BEING_ADDED.keys() & counted.keys()


def test_a_group_by_a_label_that_is_not_there_is_found() -> None:
    ((grouped, names),) = _groups(promql.parse('sum by (no) (rate(some_total{a="b"}[5m]))'))
    assert (grouped, names) == ({"no"}, ["some_total"])
    assert _selectors(promql.parse('some_total{a="b"} / other')) == [
        ("some_total", {"a"}),
        ("other", set()),
    ]


def _selectors(read: Any) -> list[tuple[str, set[str]]]:
    """Names that are asked for, and the labels that they are chosen by."""
    found: list[tuple[str, set[str]]] = []

    def see(node: Any) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append((node.name, {one.name for one in node.matchers.matchers}))
        return True

    promql.walk(read, see)
    return found


def _groups(read: Any) -> list[tuple[set[str], list[str]]]:
    """Labels of each aggregation, and the names that it aggregates."""
    found: list[tuple[set[str], list[str]]] = []

    def see(node: Any) -> bool:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            names = [name for name, _ in _selectors(node.expr)]
            found.append((set(node.modifier.labels), names))
        return True

    promql.walk(read, see)
    return found


def test_the_dashboard_is_what_its_script_writes() -> None:
    page = runpy.run_path(str(ROOT / "docker" / "grafana.py"))["page"]
    assert (ROOT / "docker" / "grafana.json").read_text() == page(), "run python docker/grafana.py"


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    grafana = pytest.importorskip(
        "grafana_foundation_sdk.models.dashboard", reason="extra dev: grafana-foundation-sdk"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()  # its kinds of panels and queries
    for change, lost in ({}, []), ({"titel": 1}, ["titel"]):
        given = dashboard() | change
        known = json.loads(JSONEncoder().encode(grafana.Dashboard.from_json(given)))
        assert list(_missing(given, known)) == lost


def _missing(given: Any, known: Any, place: str = "") -> Iterator[str]:
    """Where something was given that is not known, or is known otherwise."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            yield from _missing(value, known.get(name), f"{place}.{name}".lstrip("."))
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for number, pair in enumerate(zip(given, known, strict=True)):
            yield from _missing(*pair, f"{place}.{number}")
    elif given != known:
        yield place


def test_panels_stand_beside_each_other() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(places)
