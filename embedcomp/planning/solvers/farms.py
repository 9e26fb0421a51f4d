"""FARMS-style ranks: a baseline that gives more of their ranks to layers of heavy-tailed spectrum.

Source: arXiv 2506.06280. A trained layer's eigenvalues have a heavy tail; how heavy depends on the
shape of the matrix too, so it is measured on square windows of the weight, all eigenvalues of which
are pooled, by the Hill estimator over their upper half. As in AlphaPruning (arXiv 2410.10912), a
layer's share moves on a line with its exponent: the heaviest tail keeps 1 + SPREAD times a common
share of its parameters, the lightest 1 - SPREAD times. The common share is found by bisection.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedcomp.planning import thresholds
from embedcomp.planning.choices import Chosen, Menu
from embedcomp.sensitivity.layer import Layer
from embedcomp.sensitivity.spectra import tail_exponent

SPREAD = 0.3

WHOLE_FAMILIES = True  # one threshold gives layers ranks of one method


def least_loss(options: Mapping[str, Menu], most_bytes: float) -> Chosen | None:
    return thresholds.least_loss(options, _levels(options), most_bytes)


def least_bytes(options: Mapping[str, Menu], most_loss: float) -> Chosen | None:
    return thresholds.least_bytes(options, _levels(options), most_loss)


def _levels(options: Mapping[str, Menu]) -> dict[str, np.ndarray]:
    """The inverse of the common share below which a layer needs more than k ranks."""
    ranked = {name: menu for name, menu in options.items() if thresholds.has_ranks(menu)}
    shares = relative_shares(np.array([tail_exponent(menu.layer) for menu in ranked.values()]))
    levels = {
        name: share * _ranks_per_share(menu.layer)
        for (name, menu), share in zip(ranked.items(), shares, strict=True)
    }
    return dict.fromkeys(options, np.zeros(0)) | levels


def relative_shares(exponents: np.ndarray) -> np.ndarray:
    """What each layer keeps of its parameters, relative to the common share."""
    low, high = exponents.min(initial=np.inf), exponents.max(initial=-np.inf)
    if not low < high:
        return np.ones(len(exponents))
    return 1 + SPREAD - 2 * SPREAD * (exponents - low) / (high - low)


def _ranks_per_share(layer: Layer) -> np.ndarray:
    """For every k, the ranks of as many parameters as the layer has, over k: float64 [ranks]."""
    rows, columns = layer.weight.shape
    full = rows * columns / (rows + columns)
    with np.errstate(divide="ignore"):
        return full / np.arange(min(rows, columns))
