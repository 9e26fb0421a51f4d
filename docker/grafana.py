"""Writes grafana.json, a dashboard of what servers count: `python docker/grafana.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF, EVERY = '{namespace="$namespace"}', "[$__rate_interval]"
WIDTH, HEIGHT = 12, 8  # of a panel; two stand side by side
VERSION = "{{model}} {{version}}"
OF_VERSION = "namespace, model, version"
BUCKET = f"{OF_VERSION}, score"
LEAST_SHARE = 0.0001  # an empty bucket is counted as this, since ln 0 is no number
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
    of_ids = "model, version, feature"
    unknown = _share("embedcomp_unknown_ids_total", "embedcomp_ids_total", of_ids)
    expected = f"max by ({of_ids}) (embedcomp_expected_unknown_ids_ratio{OF})"
    mean = _share("embedcomp_scores_sum_total", "embedcomp_scored_rows_total", "model, version")
    different = _share(
        "embedcomp_shadow_difference_sum_total", "embedcomp_shadowed_rows_total", "model, version"
    )
    most = f"max by (model, version) (embedcomp_shadow_difference_max{OF})"
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
        _panel("Rows a second", "none", _rate("embedcomp_scored_rows_total", "model, version")),
        _panel("Mean score", "none", (mean, VERSION)),
        _stacked(_panel("Rows by score", "none", _rate("embedcomp_scored_rows_total", "score"))),
        _panel("Drift of scores in an hour (PSI)", "none", (drift_of_scores(), VERSION)),
        _panel("Ids that are unknown", "percentunit", (unknown, _legend(of_ids))),
        _panel(
            "Unknown ids beyond those of the log",
            "percentunit",
            (f"{unknown} - {expected}", _legend(of_ids)),
        ),
        _panel(
            "How far shadows are off",
            "none",
            (different, f"{VERSION} mean"),
            (most, f"{VERSION} largest"),
        ),
        _panel(
            "Calls that a shadow was to score",
            "none",
            _rate("embedcomp_not_shadowed_total", "model, version, reason"),
        ),
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


def drift_of_scores(of: str = OF, within: str = "[1h]") -> str:
    """The population stability index of scores against those of the evaluation.

    It is the sum over buckets of (share - expected) ln(share / expected).
    """
    rows = f"(increase(embedcomp_scored_rows_total{of}{within}))"
    parts, all_of_them = (f"sum by ({by}) {rows}" for by in (BUCKET, OF_VERSION))
    share = f"{parts} / on ({OF_VERSION}) group_left () {all_of_them}"
    expected = f"max by ({BUCKET}) (embedcomp_expected_scores_ratio{of})"
    share, expected = (f"clamp_min({one}, {LEAST_SHARE})" for one in (share, expected))
    return f"sum by ({OF_VERSION}) (({share} - {expected}) * ln({share} / {expected}))"


def _stacked(panel: dict[str, Any]) -> dict[str, Any]:
    """The same with lines on top of each other, as shares of all."""
    custom = {"stacking": {"mode": "percent"}, "fillOpacity": 60}
    panel["fieldConfig"]["defaults"]["custom"] = custom
    return panel


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
