"""Dashboard, alerts and autoscaling ask for what a server counts."""

from __future__ import annotations

import json
import runpy
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pyarrow as pa
import pytest
from manifests import ROOT, dashboard, expressions
from prometheus_client.parser import text_string_to_metric_families
from test_workers import command
from toy_scorer import FEATURES, save_small

from embedcomp.artifact.proof import Proof
from embedcomp.kernels import native
from embedcomp.log.features import Features
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.labels import FILE
from embedcomp.support.metrics import SCORES

pytestmark = pytest.mark.slow  # all share models that take long to make

promql = pytest.importorskip("promql_parser", reason="extra dev: promql-parser")
OF_TARGET = {"namespace", "pod", "le"}  # Prometheus' own labels of a pod, and of a bucket
EVERY = [pytest.param(expression, id=name) for name, expression in expressions()]
PROOF = Proof(
    model=None,
    reason="a toy",
    scores=[1 / len(SCORES)] * len(SCORES),
    unknown_ids={one.name: 0.1 for one in FEATURES.ids},
)
ALL = ("embedcomp_shadowed_rows_total", "embedcomp_not_shadowed_total")  # which come the latest


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """Names and labels of what a server of two workers says once shadows were compared."""
    if native.library() is None:
        pytest.skip("the engine was not built")
    home = tmp_path_factory.mktemp("models")
    fewer = Features(FEATURES.ids, FEATURES.dense[:1])
    for name, second in (("compared", FEATURES), ("fails", fewer)):  # its shadow misses a column
        save_small(home / name, 1, proof=PROOF)
        save_small(home / name, 2, second, proof=PROOF)
        (home / name / FILE).write_text("stable = 2\nshadow = 1")
    process = subprocess.Popen(
        command(home, "--port", 0, "--metrics-port", 0), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, "2 workers on one port\n"))
        target, metrics = lines[0].split()[-1], lines[-1].split()[-1]
        _call_all(target)
        yield _said_by(metrics)
    finally:
        process.terminate()
        process.wait(60)


def _call_all(target: str) -> None:
    rows = {name: [1] for name in ("user_id", "age", "price")}
    columns = {**rows, "city": ["Basel"], "genres": [[1]], "tags": [["a"]]}
    with grpc.insecure_channel(target) as channel:
        for model, left_out in (("compared", []), ("fails", ["price"])):
            request = to_request(pa.RecordBatch.from_pydict(columns).drop_columns(left_out))
            request.model = model
            predict = channel.unary_unary(f"/{SERVICE}/Predict")
            predict(request.SerializeToString(), timeout=20)


def _said_by(metrics: str) -> dict[str, set[str]]:
    """Once everything is there that is told late."""
    until_s = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        found = {
            sample.name: set(sample.labels)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        if found.keys() >= set(ALL) or time.monotonic() > until_s:
            return found
        time.sleep(0.1)


@pytest.mark.server
@pytest.mark.parametrize("expression", EVERY)
def test_a_server_counts_what_is_asked_for(expression: str, counted: dict[str, set[str]]) -> None:
    read = promql.parse(expression)
    asked = _selectors(read)
    assert asked
    for name, matched in asked:
        assert matched <= counted[name] | OF_TARGET, name
    for grouped, names in _groups(read):
        for name in names:
            assert grouped <= counted[name] | OF_TARGET, name


@pytest.mark.server
def test_the_dashboard_shows_all_that_a_server_counts(counted: dict[str, set[str]]) -> None:
    shown = {name for panel in dashboard()["panels"] for name in _names(panel)}
    parts = ("_bucket", "_count", "_sum", "_created")  # of a histogram
    for name in counted:
        whole = next((name.removesuffix(part) for part in parts if name.endswith(part)), name)
        assert shown & {name, f"{whole}_bucket", whole}, f"{name} is on no panel"


def _names(panel: dict[str, Any]) -> set[str]:
    texts = [one["expr"].replace("$__rate_interval", "5m") for one in panel["targets"]]
    return {name for text in texts for name, _ in _selectors(promql.parse(text))}


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
