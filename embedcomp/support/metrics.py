"""Quality of scores, as sums that shards add up and whose size does not grow with the log."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

BINS = 1 << 20
KEPT = 1 << 16  # distinct logits whose AUC is exact
# upper ends of the buckets that scores are counted in
SCORES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(i / 10 for i in range(1, 11)))


class _Rows(NamedTuple):
    """Logits float64 [n], and how often each was not clicked and clicked, int64 [2, n]."""

    logits: np.ndarray
    counts: np.ndarray

    @classmethod
    def together(cls, parts: list[_Rows]) -> _Rows:
        """The same rows with each logit once, from the lowest to the highest."""
        logits, places = np.unique(
            np.concatenate([part.logits for part in parts]), return_inverse=True
        )
        counts = np.zeros((2, len(logits)), np.int64)
        for side, given in enumerate(np.concatenate([part.counts for part in parts], 1)):
            np.add.at(counts[side], places, given)
        return cls(logits, counts)


class Quality:
    """AUC, log loss and calibration of logits against clicks.

    Up to 65,536 distinct logits are kept, and their AUC is exact, over however many rows. Beyond,
    logits are counted in 2^20 bins, so that an AUC takes 16 MB: two logits in one bin (1.5e-5 wide
    around 0) count as equal, which moves the AUC by less than 1e-6 where logits spread over 0.1 or
    more. Tests compare both with scikit-learn's, which needs all scores.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS), np.int64)  # [not clicked, clicked] x bins
        self._losses: list[float] = []  # one entry a batch; fsum adds them exactly, in any order
        self._predicted: list[float] = []
        self._kept: list[_Rows] = []
        self._few = True  # all logits are kept

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count one batch: logits float32 [B], labels 0 or 1 [B]."""
        clicked = labels > 0.5
        z = logits.astype(np.float64)
        bins = _bins(z)
        for side, chosen in enumerate((~clicked, clicked)):
            np.add.at(self.counts[side], bins[chosen], 1)
        self._keep([_Rows(z, np.stack([~clicked, clicked]).astype(np.int64))])
        self._losses.append(float(np.sum(np.logaddexp(0.0, z) - z * clicked)))
        from scipy.special import expit  # a scorer, which reads what was measured, has no scipy

        self._predicted.append(float(np.sum(expit(z))))

    def __iadd__(self, other: Quality) -> Quality:
        self.counts += other.counts
        self._losses += other._losses
        self._predicted += other._predicted
        self._few &= other._few
        self._keep(other._kept)
        return self

    def _keep(self, rows: list[_Rows]) -> None:
        """Keep these rows too, or none any more where they have too many logits."""
        self._kept += rows
        if sum(len(one.logits) for one in self._kept) > KEPT:
            self._kept = [_Rows.together(self._kept)]
            self._few &= len(self._kept[0].logits) <= KEPT
        if not self._few:
            self._kept = []

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def auc(self) -> float:
        """Chance that a clicked row scores above one not clicked; NaN when one kind is absent."""
        kept = _Rows.together(self._kept).counts if self._few and self._kept else self.counts
        negatives, positives = kept.astype(np.float64)
        below = np.cumsum(negatives) - negatives
        pairs = negatives.sum() * positives.sum()
        won = np.sum(positives * (below + 0.5 * negatives))
        return float(won / pairs) if pairs else float("nan")

    @property
    def auc_error(self) -> float:
        """Standard deviation of the AUC of random scores, given the number of clicks."""
        fewer = float(self.counts.sum(1).min())
        return 1 / math.sqrt(12 * max(fewer, 1.0))

    @property
    def logloss(self) -> float:
        return math.fsum(self._losses) / max(self.rows, 1)

    @property
    def by_score(self) -> list[float]:
        """Share of rows whose score is in each bucket of `SCORES`."""
        rows, ends = self.counts.sum(0), _bins(np.array([_logit(score) for score in SCORES[:-1]]))
        parts = np.add.reduceat(rows, np.concatenate([[0], ends]))
        return (parts / max(self.rows, 1)).tolist()

    @property
    def calibration(self) -> float:
        """Predicted over observed clicks."""
        clicks = int(self.counts[1].sum())
        return math.fsum(self._predicted) / clicks if clicks else float("nan")

    def to_dict(self) -> dict[str, float]:
        return {
            "auc": self.auc,
            "logloss": self.logloss,
            "calibration": self.calibration,
            "rows": self.rows,
        }


class AucRange:
    """The lowest and the highest AUC of logits that are known to within an error each.

    An AUC never falls where a clicked row scores higher or another one lower. So its ends are found
    with every row at an end of its own range, and pairs that are closer than that count either way.
    """

    def __init__(self) -> None:
        self._low, self._high = Quality(), Quality()

    def add(self, logits: np.ndarray, labels: np.ndarray, errors: np.ndarray) -> None:
        """Count one batch: logits float64 [B], labels 0 or 1 [B], errors that none exceeds [B]."""
        better = np.where(labels > 0.5, errors, -errors)
        self._low.add(logits - better, labels)
        self._high.add(logits + better, labels)

    @property
    def low(self) -> float:
        """NaN when one kind of label is absent, as `high`."""
        return self._low.auc

    @property
    def high(self) -> float:
        return self._high.auc


class Estimate(NamedTuple):
    """A measured value and its standard error."""

    value: float
    error: float


def auc_fall(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> Estimate:
    """How much lower the AUC of `after` is than that of `before` on the same rows.

    The error is that of DeLong, DeLong and Clarke-Pearson (1988) for two scores of the same rows,
    which takes in how alike the two are. NaN where there are fewer than two rows of either kind.

    Args:
        labels: 0 or 1 [n].
        before, after: scores [n].
    """
    clicked = labels > 0.5
    falls = [b - a for b, a in zip(_won(clicked, before), _won(clicked, after), strict=True)]
    if min(map(len, falls)) < 2:
        return Estimate(math.nan, math.nan)
    variance = sum(float(fall.var(ddof=1)) / len(fall) for fall in falls)
    return Estimate(float(falls[0].mean()), math.sqrt(variance))


def _won(clicked: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the pairs in the right order, of each clicked row and of each other one.

    A tie is half a pair. Ranks among all rows less ranks among rows of the same kind count them
    (Sun and Xu, 2014).
    """
    ranks = _ranks(scores)
    positives, negatives = ranks[clicked], ranks[~clicked]
    of_clicked = (positives - _ranks(scores[clicked])) / max(len(negatives), 1)
    below = (negatives - _ranks(scores[~clicked])) / max(len(positives), 1)
    return of_clicked, 1 - below


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Places of scores from the lowest, beginning with 1; equal ones share their mean place."""
    from pandas import Series  # scipy.stats takes a second to import

    ranks: np.ndarray = Series(scores).rank().to_numpy()
    return ranks


def centres() -> np.ndarray:
    """The logit in the middle of each bin, float64 [BINS]."""
    squeezed = (np.arange(BINS) + 0.5) / (BINS // 2) - 1
    return 8 * squeezed / (1 - np.abs(squeezed))


def by_score(scores: np.ndarray) -> np.ndarray:
    """Rows in each bucket of `SCORES`, int64, of probabilities float32 [B]."""
    buckets = np.searchsorted(_ENDS, scores)
    return np.bincount(buckets, minlength=len(SCORES))


_ENDS = np.array(SCORES[:-1], np.float32)


def _logit(score: float) -> float:
    return math.log(score / (1 - score))


def _bins(logits: np.ndarray) -> np.ndarray:
    """Bin of each logit float64 [B]: 1.5e-5 wide at 0, and wider by (1 + |z| / 8)^2 further out."""
    squeezed = logits / (8 + np.abs(logits))  # in (-1, 1), growing with the logit
    return np.minimum((squeezed + 1) * (BINS // 2), BINS - 1).astype(np.int64)
