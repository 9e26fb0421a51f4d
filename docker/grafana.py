"""Writes grafana.json, a dashboard of what servers count: `python docker/grafana.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF, EVERY = '{namespace="$namespace"}', "[$__rate_interval]"
WIDTH, HEIGHT = 12, 8  # of a panel; two stand side by side
VERSION = "{{model}} {{version}}"
Query = tuple[str, str]  # PromQL, and the legend of its lines


def page() -> str:
    """The dashboard, a line a panel."""
    shown = [json.dumps(_at(place, panel)) for place, panel in enumerate(panels())]
    head = json.dumps({**about(), "panels": []})
    return head.replace('"panels": []', '"panels": [\n' + ",\n".join(shown) + "\n]") + "\n"


def about() -> dict[str, Any]:
    namespaces = "label_values(embedcomp_version_ready, namespace)"
    return {
        "uid": "embedcomp",
        "title": "embedcomp",
        "schemaVersion": 38,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "query": "prometheus"},
                {
                    "type": "query",
                    "name": "namespace",
                    "datasource": SOURCE,
                    "query": namespaces,
                    "refresh": 2,
                },
            ]
        },
    }


def panels() -> list[dict[str, Any]]:
    calls = f"embedcomp_requests_total{OF}{EVERY}"
    failed = f'embedcomp_requests_total{{namespace="$namespace", code!="OK"}}{EVERY}'
    unknown = _share("embedcomp_unknown_ids_total", "embedcomp_ids_total", "model, feature")
    mean = _share("embedcomp_scores_sum", "embedcomp_scores_count", "model, version")
    ever = f"avg by (model, version) (embedcomp_version_mean_score{OF})"
    scores = _panel(
        "Scores", "none", (f"sum by (le) (increase(embedcomp_scores_bucket{OF}{EVERY}))", "{{le}}")
    )
    scores["targets"][0]["format"] = scores["type"] = "heatmap"
    return [
        _panel(
            "Calls a second", "reqps", (f"sum by (door, code) (rate({calls}))", "{{door}} {{code}}")
        ),
        _panel(
            "Calls that failed",
            "percentunit",
            (
                f"sum by (code) (rate({failed})) / on () group_left () sum (rate({calls}))",
                "{{code}}",
            ),
        ),
        _panel("Time of a call", "s", *_quantiles("embedcomp_request_duration_seconds", "door, ")),
        _panel("Time in the queue", "s", *_quantiles("embedcomp_queue_seconds")),
        _panel("Time of scoring a batch", "s", *_quantiles("embedcomp_compute_seconds")),
        _panel("Rows of a batch", "none", *_quantiles("embedcomp_batch_rows")),
        _panel("Rows that wait", "none", _sum("embedcomp_queued_rows", "pod")),
        _panel("Rows a second", "none", _rate("embedcomp_version_rows", "model, version")),
        _panel("Mean score", "none", (mean, VERSION), (ever, f"{VERSION} since it began")),
        scores,
        _panel("Ids that are unknown", "percentunit", (unknown, "{{model}} {{feature}}")),
        _panel(
            "Pods where a version is ready",
            "none",
            _sum("embedcomp_version_ready", "model, version"),
        ),
        _panel(
            "Pods where it is current", "none", _sum("embedcomp_version_current", "model, version")
        ),
        _panel(
            "Bytes that scoring reads",
            "bytes",
            (f"max by (model, version) (embedcomp_resident_bytes{OF})", VERSION),
        ),
        _panel("Workers started again", "none", _rate("embedcomp_worker_restarts_total", "pod")),
    ]


def _panel(title: str, unit: str, *queries: Query) -> dict[str, Any]:
    targets = [
        {"refId": letter, "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for letter, (expression, legend) in zip("ABC", queries, strict=False)
    ]
    return {
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": targets,
    }


def _at(place: int, panel: dict[str, Any]) -> dict[str, Any]:
    row, column = divmod(place, 2)
    where = {"x": WIDTH * column, "y": HEIGHT * row, "w": WIDTH, "h": HEIGHT}
    return {"id": place + 1, "gridPos": where, **panel}


def _quantiles(metric: str, by: str = "") -> list[Query]:
    shares = f"sum by ({by}le) (rate({metric}_bucket{OF}{EVERY}))"
    legend = "".join(f"{{{{{label}}}}} " for label in by.split(", ") if label)
    return [(f"histogram_quantile({q / 100}, {shares})", f"{legend}p{q}") for q in (50, 90, 99)]


def _sum(metric: str, by: str) -> Query:
    return f"sum by ({by}) ({metric}{OF})", _legend(by)


def _rate(metric: str, by: str) -> Query:
    return f"sum by ({by}) (rate({metric}{OF}{EVERY}))", _legend(by)


def _share(part: str, whole: str, by: str) -> str:
    return f"{_rate(part, by)[0]} / {_rate(whole, by)[0]}"


def _legend(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", "))


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_text(page())
