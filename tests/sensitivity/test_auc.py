"""What noise on the scores costs, against noise that is really added."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from embedcomp.errors import BadLog, BadSettings
from embedcomp.sensitivity.auc import STEPS, Noisy, _rising
from embedcomp.support.metrics import Quality


def scored(seed=0, rows=200_000, spread=1.2):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, spread, rows).astype(np.float32)
    return logits, (rng.random(rows) < expit(logits)).astype(np.float32)


def noisy(logits, labels):
    found = Quality()
    found.add(logits, labels)
    return Noisy.of(found)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_the_auc_falls_as_it_does_with_real_noise(noise):
    logits, labels = scored()
    rng = np.random.default_rng(1)
    whole, falls, rises = log_loss(labels, expit(logits)), [], []
    for _ in range(8):
        moved = logits + noise * rng.normal(size=len(logits))
        falls.append(roc_auc_score(labels, logits) - roc_auc_score(labels, moved))
        rises.append(log_loss(labels, expit(moved)) - whole)
    found = noisy(logits, labels)
    predicted = 0.5 * noise**2 * float(np.mean(expit(logits) * expit(-logits)))
    assert predicted == pytest.approx(np.mean(rises), rel=0.1)
    assert found.auc_loss(predicted) == pytest.approx(np.mean(falls), rel=0.1)


def test_two_scores_have_a_known_answer():
    found = noisy(np.float32([0, 0, 1, 1]), np.float32([0, 0, 1, 1]))
    curvature = (0.25 + expit(1) * expit(-1)) / 2
    loss = 0.5 * curvature  # of noise of standard deviation 1
    assert found.auc == 1
    assert found.auc_loss(loss) == pytest.approx(0.2397500611, rel=1e-4)  # Phi(-1 / sqrt 2)


@pytest.mark.slow
@pytest.mark.parametrize("auc_loss", [1e-5, 1e-3, 0.05, 0.2])
def test_the_way_back_is_the_way_there(auc_loss):
    found = noisy(*scored(rows=20_000))
    assert found.auc_loss(found.log_loss(auc_loss)) == pytest.approx(auc_loss, rel=1e-6)
    assert found.auc_loss(0.0) == 0


def test_more_noise_costs_more():
    found = noisy(*scored(rows=20_000))
    falls = [found.auc_loss(loss) for loss in np.logspace(-8, 6, 60)]
    assert falls == sorted(falls) and falls[-1] == pytest.approx(found.auc - 0.5, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("auc_loss", [0.0, -0.1, 0.4])
def test_what_no_noise_brings_about_is_refused(auc_loss):
    with pytest.raises(BadSettings, match=r"must be above 0 and below 0\.2\d+: the original's AUC"):
        noisy(*scored(rows=20_000)).log_loss(auc_loss)


def test_scores_of_one_kind_have_no_auc():
    with pytest.raises(BadLog, match="no AUC to lose: 0 of the 3 rows that were scored are click"):
        noisy(np.float32([1, 2, 3]), np.float32([0, 0, 0]))


def test_a_rising_click_rate_keeps_the_clicks_of_what_it_levels():
    rows = np.zeros((2, STEPS))
    rows[:, 3], rows[:, 7], rows[:, 9] = (5, 5), (81, 9), (1, 3)  # rates of 0.5, 0.1 and 0.75
    others, clicked = _rising(rows)
    assert clicked[[3, 7, 9]] == pytest.approx([1.4, 12.6, 3])  # 14 of 100 where the rate falls
    assert (others + clicked == rows.sum(0)).all()
