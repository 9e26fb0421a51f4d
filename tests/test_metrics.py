"""Quality, against scikit-learn, which needs all scores at once."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from embedcomp.metrics import Quality


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_quality_is_that_of_scikit_learn(spread: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, spread, 50_000).astype(np.float32)
    labels = (rng.random(50_000) < 1 / (1 + np.exp(-logits / 2))).astype(np.float32)
    found = Quality()
    for part in np.array_split(np.arange(50_000), 7):
        found.add(logits[part], labels[part])
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    assert found.logloss == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert found.calibration == pytest.approx(probabilities.sum() / labels.sum())
    assert found.rows == 50_000


def test_quality_of_shards_adds_up_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    parts = [(rng.normal(size=100).astype(np.float32), rng.integers(0, 2, 100)) for _ in range(9)]
    whole, first, second = Quality(), Quality(), Quality()
    for logits, labels in parts:
        whole.add(logits, labels)
    for logits, labels in parts[::-2]:
        first.add(logits, labels)
    for logits, labels in parts[1::2]:
        second.add(logits, labels)
    first += second
    assert first.to_dict() == whole.to_dict()


def test_ties_count_half_and_zeros_of_both_signs_are_tied() -> None:
    found = Quality()
    found.add(np.array([0.0, -0.0, 1.0, -1.0]), np.array([1, 0, 1, 0]))
    assert found.auc == pytest.approx((0.5 + 3) / 4)


def test_an_auc_without_clicks_is_not_a_number() -> None:
    found = Quality()
    found.add(np.zeros(3), np.zeros(3))
    assert np.isnan(found.auc) and np.isnan(found.calibration)
