"""From a predicted increase of the log loss to the AUC that it costs, and back.

Both are read off one picture of compression: it moves every logit by independent Gaussian noise of
standard deviation s. The increase of the log loss that plans predict is then s^2 E[p (1 - p)] / 2,
the expectation over the original model's scores; and a clicked row whose score is above that of a
row not clicked by d falls below it with the chance Phi(-d / (s sqrt 2)), from which the AUC follows
by the distribution of d. The click rate is taken to rise with the score (isotonic regression on the
labels), so that more noise always costs more. Real errors are neither Gaussian nor the same for all
rows, so the AUC is an estimate: evaluate what matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.fft import irfft, rfft
from scipy.optimize import brentq, isotonic_regression
from scipy.special import expit, ndtr

from embedcomp.errors import BadLog, BadSettings
from embedcomp.support.metrics import Quality, centres

STEPS = 1 << 15  # of the grid on which differences of scores are counted
NOISES = np.logspace(-6, 4, 401)  # standard deviations among which a loss is looked for


@dataclass(frozen=True)
class Noisy:
    """A model's scores, and what noise on them costs.

    auc: of the scores themselves.
    curvature: E[p (1 - p)].
    differences: float64 [n], positive differences of two rows' logits.
    surplus: float64 [n], chance that a clicked row is above one not clicked by so much, less the
        chance that it is below by as much; not negative.
    """

    auc: float
    curvature: float
    differences: np.ndarray
    surplus: np.ndarray

    @classmethod
    def of(cls, scores: Quality) -> Noisy:
        """
        Raises:
            BadLog: the scores are all of clicked rows, or all of others: they have no AUC.
        """
        others, clicked = scores.counts.sum(1).tolist()
        if not others or not clicked:
            raise BadLog(
                f"the original's scores have no AUC to lose: {clicked:,} of the "
                f"{scores.rows:,} rows that were scored are clicked; give a split with both kinds"
            )
        grid, rows = _on_a_grid(scores.counts)
        curvature = float(rows.sum(0) @ (expit(grid) * expit(-grid))) / scores.rows
        below, above = _rising(rows)
        counts = irfft(rfft(above, 2 * STEPS) * rfft(below, 2 * STEPS).conj())  # by steps above
        chances = counts / (others * clicked)
        surplus = (chances[1:STEPS] - chances[:STEPS:-1]).clip(0)  # but for rounding
        differences = float(grid[1] - grid[0]) * np.arange(1, STEPS)
        return cls(scores.auc, curvature, differences, surplus)

    def auc_loss(self, loss: float) -> float:
        """What the AUC falls by where the log loss rises by `loss`."""
        return self._fall(np.sqrt(2 * loss / self.curvature))

    def log_loss(self, auc_loss: float) -> float:
        """The smallest increase of the log loss that makes the AUC fall by `auc_loss`.

        Raises:
            BadSettings: no noise does.
        """
        falls = np.array([self._fall(noise) for noise in NOISES])
        if not 0 < auc_loss < falls.max():
            raise BadSettings(
                f"max_auc_loss is {auc_loss:g}, but must be above 0 and below {falls.max():.3g}: "
                f"the original's AUC is {self.auc:.4f}, and noise alone has about 0.5"
            )
        first = max(int(np.argmax(falls >= auc_loss)), 1)
        noise = brentq(lambda s: self._fall(s) - auc_loss, NOISES[first - 1], NOISES[first])
        return 0.5 * float(noise) ** 2 * self.curvature

    def _fall(self, noise: float) -> float:
        """Decrease of the AUC by noise of this standard deviation on every logit."""
        if not noise:
            return 0.0
        return float(self.surplus @ ndtr(-self.differences / (noise * np.sqrt(2))))


def _on_a_grid(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An even grid of logits [STEPS], and the rows of each kind at its points [2, STEPS].

    A count is split between the two points around it, so that means are kept.
    """
    used = np.flatnonzero(counts.sum(0))
    logits, found = centres()[used], counts[:, used]
    low, width = logits[0], max(logits[-1] - logits[0], 1e-6)
    places = (logits - low) * (STEPS - 1) / width
    below = np.minimum(places.astype(np.int64), STEPS - 2)
    above = places - below
    rows = np.zeros((2, STEPS))
    for kind in range(2):
        np.add.at(rows[kind], below, found[kind] * (1 - above))
        np.add.at(rows[kind], below + 1, found[kind] * above)
    return low + np.arange(STEPS) * width / (STEPS - 1), rows


def _rising(rows: np.ndarray) -> np.ndarray:
    """These rows [2, STEPS] with clicks as a rising click rate would distribute them."""
    total = rows.sum(0)
    used = total > 0
    rates = isotonic_regression(rows[1, used] / total[used], weights=total[used]).x
    clicked = np.zeros(STEPS)
    clicked[used] = rates * total[used]
    return np.stack([total - clicked, clicked])
