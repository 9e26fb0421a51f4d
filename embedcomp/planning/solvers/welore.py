"""WeLore's single threshold: a baseline that goes by singular values instead of predicted losses.

Source: arXiv 2407.11239. The singular values of every layer's weight are divided by the largest of
them, and one threshold for all layers, found by bisection, says which are kept: layers whose
spectrum falls fast get few ranks. (The published one meets a mean rank, this one a number of bytes
or a predicted loss; which method and storage the ranks come in: see compress/thresholds.py.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedcomp.planning import thresholds
from embedcomp.planning.choices import Chosen, Menu
from embedcomp.sensitivity.spectra import singular_values

WHOLE_FAMILIES = True  # one threshold gives layers ranks of one method


def least_loss(options: Mapping[str, Menu], most_bytes: float) -> Chosen | None:
    return thresholds.least_loss(options, _levels(options), most_bytes)


def least_bytes(options: Mapping[str, Menu], most_loss: float) -> Chosen | None:
    return thresholds.least_bytes(options, _levels(options), most_loss)


def _levels(options: Mapping[str, Menu]) -> dict[str, np.ndarray]:
    """Normalised singular values: more than k ranks are needed below the k-th, from 0."""
    found = {name: singular_values(menu.layer) for name, menu in options.items()}
    return {name: values / (values.max(initial=0.0) or 1.0) for name, values in found.items()}
