"""Alerts fire where scores, ids or shadows are other than they should be, and not else."""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np
import pytest
from instant import value
from manifests import ROOT, expressions

from embedcomp.support.metrics import SCORES

promql = pytest.importorskip("promql_parser", reason="extra dev: promql-parser")
ALERTS = dict(expressions())
OF = {"namespace": "ads", "model": "clicks", "version": "3"}
EXPECTED = np.linspace(2, 1, len(SCORES)) / np.linspace(2, 1, len(SCORES)).sum()
EXPECTED[-1], EXPECTED[0] = 0.0, EXPECTED[0] + EXPECTED[-1]  # of an empty bucket too


def fires(alert: str, **series: Any) -> list[float]:
    """The values that an alert fires with."""
    found = value(promql.parse(ALERTS[alert]), series)
    for of in found:
        assert dict(of).items() >= OF.items()
    return list(found.values())


def scores(rows: np.ndarray) -> dict[str, Any]:
    """Two pods that each scored half of these rows, by bucket, and what is expected of them."""
    pods = [OF | {"pod": pod} for pod in "ab"]
    buckets = [f"{edge:g}" for edge in SCORES]
    return {
        "embedcomp_scored_rows_total": [
            (of | {"score": edge}, float(n) / 2)
            for of in pods
            for edge, n in zip(buckets, rows, strict=True)
        ],
        "embedcomp_expected_scores_ratio": [
            (of | {"score": edge}, share)
            for of in pods
            for edge, share in zip(buckets, EXPECTED, strict=True)
        ],
    }


def test_scores_that_are_spread_as_they_were_raise_no_alarm() -> None:
    rows = np.random.default_rng(0).multinomial(5_000, EXPECTED)
    assert fires("EmbedcompScoresDrift", **scores(rows)) == []


def test_scores_that_are_spread_otherwise_raise_one_with_their_index() -> None:
    rows = 10_000 * np.roll(EXPECTED, 3)
    (found,) = fires("EmbedcompScoresDrift", **scores(rows))
    share, expected = (np.maximum(part, 1e-4) for part in (rows / rows.sum(), EXPECTED))
    assert found == pytest.approx(((share - expected) * np.log(share / expected)).sum())
    assert found > 0.25


def test_few_rows_and_models_of_which_nothing_is_expected_raise_none() -> None:
    assert fires("EmbedcompScoresDrift", **scores(900 * np.roll(EXPECTED, 3))) == []
    series = scores(10_000 * np.roll(EXPECTED, 3))
    del series["embedcomp_expected_scores_ratio"]
    assert fires("EmbedcompScoresDrift", **series) == []


def test_the_dashboard_shows_the_index_that_the_alert_is_about() -> None:
    drift = runpy.run_path(str(ROOT / "docker" / "grafana.py"))["drift_of_scores"]
    series = scores(10_000 * np.roll(EXPECTED, 3))
    (shown,) = value(promql.parse(drift(of="")), series).values()
    assert [shown] == fires("EmbedcompScoresDrift", **series)


@pytest.mark.parametrize("unknown, alarm", [(0.35, [0.15]), (0.25, []), (0.0, [])])
def test_ids_raise_an_alarm_where_more_are_unknown_than_in_the_log(
    unknown: float, alarm: list[float]
) -> None:
    of = OF | {"feature": "city"}
    found = fires(
        "EmbedcompIdsDrift",
        embedcomp_ids_total=[(of | {"pod": pod}, 50.0) for pod in "ab"],
        embedcomp_unknown_ids_total=[(of | {"pod": pod}, 50 * unknown) for pod in "ab"],
        embedcomp_expected_unknown_ids_ratio=[(of | {"pod": pod}, 0.2) for pod in "ab"],
    )
    assert found == pytest.approx(alarm)


@pytest.mark.parametrize("off, alarm", [(0.03, [0.03]), (0.01, [])])
def test_a_shadow_that_scores_otherwise_raises_an_alarm(off: float, alarm: list[float]) -> None:
    found = fires(
        "EmbedcompShadowDiffers",
        embedcomp_shadowed_rows_total=[(OF | {"pod": pod}, 100.0) for pod in "ab"],
        embedcomp_shadow_difference_sum_total=[(OF | {"pod": pod}, 100 * off) for pod in "ab"],
    )
    assert found == pytest.approx(alarm)


@pytest.mark.parametrize("reason, alarm", [("failed", [2.0]), ("busy", [])])
def test_a_shadow_that_fails_raises_an_alarm_and_a_busy_one_none(
    reason: str, alarm: list[float]
) -> None:
    calls = [(OF | {"pod": pod, "reason": reason}, 1.0) for pod in "ab"]
    assert fires("EmbedcompShadowFails", embedcomp_not_shadowed_total=calls) == alarm
