"""Quality, against scikit-learn, which needs all scores at once."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from embedcomp.support.metrics import KEPT, SCORES, AucRange, Quality, auc_fall, by_score


@pytest.mark.parametrize(
    ("rows", "spread", "error"),
    [(KEPT, spread, 1e-12) for spread in (0.01, 0.1, 1.0, 30.0)]
    + [(200_000, spread, 1e-6) for spread in (0.1, 1.0, 30.0)],
)
def test_quality_is_that_of_scikit_learn(rows: int, spread: float, error: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, spread, rows).astype(np.float32)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logits / 2))).astype(np.float32)
    found = Quality()
    for part in np.array_split(np.arange(rows), 7):
        found.add(logits[part], labels[part])
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found.auc == pytest.approx(roc_auc_score(labels, logits), abs=error)
    assert found.logloss == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert found.calibration == pytest.approx(probabilities.sum() / labels.sum())
    assert found.rows == rows


def test_shards_of_few_rows_add_up_to_many() -> None:
    """Each keeps its rows, and their sum does not, in whatever order they come."""
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=KEPT + 2), rng.integers(0, 2, KEPT + 2)
    one, other, whole = Quality(), Quality(), Quality()
    whole.add(logits, labels)
    one.add(logits[: KEPT // 2], labels[: KEPT // 2])
    other.add(logits[KEPT // 2 :], labels[KEPT // 2 :])
    other += one
    assert other.auc == whole.auc
    again = Quality()
    for rows in (slice(KEPT // 2), slice(None)):
        again.add(logits[rows], labels[rows])
    one += whole  # few rows and many are many
    assert one.auc == again.auc
    other += Quality()  # of a shard without rows
    assert other.auc == whole.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)


def test_the_auc_of_few_scores_is_exact_over_many_rows() -> None:
    """They lie closer together than bins are wide, and one batch has more rows than are kept."""
    rng = np.random.default_rng(4)
    scores = -1 + 1e-7 * rng.permutation(143)
    rows = rng.integers(0, len(scores), 3 * KEPT)
    labels = (rng.random(len(rows)) < rows / 300).astype(np.float32)
    found, other = Quality(), Quality()
    found.add(scores[rows[:KEPT]], labels[:KEPT])
    other.add(scores[rows[KEPT:]], labels[KEPT:])
    found += other
    assert found.auc == pytest.approx(roc_auc_score(labels, scores[rows]), abs=1e-12)


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


@pytest.mark.slow
def test_ties_count_half_and_zeros_of_both_signs_are_tied() -> None:
    found = Quality()
    found.add(np.array([0.0, -0.0, 1.0, -1.0]), np.array([1, 0, 1, 0]))
    assert found.auc == (0.5 + 3) / 4
    for _ in range(KEPT // 4):
        found.add(np.array([0.0, -0.0, 1.0, -1.0]), np.array([1, 0, 1, 0]))
    assert found.auc == pytest.approx((0.5 + 3) / 4)  # in bins


def test_an_auc_without_clicks_is_not_a_number() -> None:
    found = Quality()
    found.add(np.zeros(3), np.zeros(3))
    assert np.isnan(found.auc) and np.isnan(found.calibration)


def between(logits: list[float], labels: list[int], error: float) -> tuple[float, float]:
    found = AucRange()
    for i in range(len(logits)):  # a row at a time
        found.add(np.array(logits[i : i + 1]), np.array(labels[i : i + 1]), np.array([error]))
    return found.low, found.high


@pytest.mark.parametrize(
    ("logits", "low", "high"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0.0, 1.0),  # all pairs are ties
        ([0.0, 1e-7, 0.0, 1e-7], 0.0, 1.0),  # and here but for rounding
        ([1.0, 0.0, 0.0, -1.0], 0.75, 1.0),  # one of four pairs is one
        ([1.0, 0.5, 0.0, -1.0], 1.0, 1.0),  # none
        ([1.0, -0.5, 0.0, -1.0], 0.75, 0.75),  # none, and one pair is in the wrong order
        ([1.0, 1.9e-6, 0.0, -1.0], 0.75, 1.0),  # just within what two errors come to
        ([1.0, 2.1e-6, 0.0, -1.0], 1.0, 1.0),  # and just beyond
    ],
)
def test_pairs_closer_than_their_errors_count_either_way(
    logits: list[float], low: float, high: float
) -> None:
    assert between(logits, [1, 1, 0, 0], 1e-6) == (low, high)


@pytest.mark.slow
def test_an_auc_range_ends_where_errors_could_bring_the_auc() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        logits, errors = rng.normal(size=7), rng.random(7) / 2
        labels = np.array([1, 0, 1, 0, 1, 0, 0])
        found = AucRange()
        found.add(logits, labels, errors)
        every = [roc_auc_score(labels, logits + errors * s) for s in product((-1.0, 1.0), repeat=7)]
        assert found.low == pytest.approx(min(every)) and found.high == pytest.approx(max(every))


@pytest.mark.parametrize("rows", [1_000, KEPT + 1_000])
def test_the_auc_of_equal_scores_that_are_rounded_is_in_its_range(rows: int) -> None:
    """Also beyond the rows that are kept, where scores may lie at the edges of bins."""
    rng = np.random.default_rng(5)
    logits = rng.integers(-3, 4, rows) * 0.25
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    here, there, found = Quality(), Quality(), AucRange()
    here.add(logits, labels)
    there.add(logits + 1e-7 * (labels - 0.5), labels)  # every tie is won
    found.add(logits, labels, np.full(rows, 1e-7))
    assert there.auc - here.auc > 0.005
    assert found.low < here.auc < there.auc <= found.high
    none = AucRange()
    none.add(logits, np.zeros(rows), np.full(rows, 1e-7))
    assert np.isnan(none.low) and np.isnan(none.high)


def two_scores(seed: int, rows: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and scores before and after noise; both have ties."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=rows).round(1)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-before))).astype(np.float32)
    return labels, before, (before + noise * rng.normal(size=rows)).round(1)


def test_the_fall_of_an_auc_is_that_of_scikit_learn() -> None:
    labels, before, after = two_scores(0, 3_000, 1.0)
    fall = auc_fall(labels, before, after)
    exact = roc_auc_score(labels, before) - roc_auc_score(labels, after)
    assert fall.value == pytest.approx(exact, abs=1e-12) and fall.value > 0.01


def test_the_error_of_a_fall_is_its_spread_over_logs() -> None:
    falls = [auc_fall(*two_scores(seed, 400, 0.5)) for seed in range(400)]
    spread = np.std([fall.value for fall in falls])
    assert np.mean([fall.error for fall in falls]) == pytest.approx(spread, rel=0.1)


def test_equal_scores_fall_by_nothing_for_certain() -> None:
    labels, before, _ = two_scores(0, 100, 0.0)
    assert auc_fall(labels, before, 2 * before) == (0.0, 0.0)


@pytest.mark.parametrize("clicked", [0, 1, 9, 10])
def test_a_fall_needs_two_rows_of_each_kind(clicked: int) -> None:
    labels = np.float32([1] * clicked + [0] * (10 - clicked))
    assert np.isnan(auc_fall(labels, np.arange(10.0), np.arange(10.0)).value)


def test_scores_are_counted_in_the_bucket_whose_end_they_do_not_pass() -> None:
    scores = np.array([0.0005, 0.001, 0.0011, 0.05, 0.3, 0.30001, 0.95, 1.0], np.float32)
    ends = np.array((0, *SCORES), np.float32)
    wanted = [sum(low < score <= high for score in scores) for low, high in pairwise(ends)]
    assert by_score(scores).tolist() == wanted
    between = np.array([0.0003, 0.0015, 0.004, 0.04, 0.25, 0.35, 0.95, 0.99])
    found = Quality()
    found.add(np.log(between / (1 - between)), np.zeros(8))
    assert found.by_score == (by_score(between) / 8).tolist()
