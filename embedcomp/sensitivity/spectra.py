"""Spectra of weights, for heuristics that choose ranks by them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embedcomp.sensitivity.algebra import RIDGE, gram
from embedcomp.sensitivity.layer import Layer

WINDOWS = 16  # square windows of a weight, at most
WINDOW = 128  # their side, at most


def singular_values(layer: Layer) -> np.ndarray:
    """Singular values of a layer's weight, largest first, float64 [r].

    They are computed from its Gram matrix, so the tiny ones are rough."""
    return layer.shared(_singular_values)


def _singular_values(layer: Layer) -> np.ndarray:
    weight = layer.weight
    rows, columns = weight.shape
    small = gram(weight if rows >= columns else weight.T)
    return torch.linalg.eigvalsh(small).clamp_min(0).sqrt().flip(0).numpy()


def tail_exponent(layer: Layer) -> float:
    """Hill's estimate of the exponent of the eigenvalues' power law; small: a heavy tail.

    Of the eigenvalues of W^T W of the weight's windows, all together.
    """
    return layer.shared(_tail_exponent)


def _tail_exponent(layer: Layer) -> float:
    return hill(_window_eigenvalues(layer.weight))


def hill(values: np.ndarray) -> float:
    """1 + k / sum(log(x_i / x_0)) over the larger half, k values x_i, x_0 the one below them."""
    rising = np.sort(values)
    rising = rising.clip(np.finfo(np.float64).eps * rising[-1] + np.finfo(np.float64).tiny)
    half = max(len(rising) // 2, 1)
    total = float(np.log(rising[half:] / rising[half - 1]).sum())
    return 1 + (len(rising) - half) / max(total, RIDGE)


def _window_eigenvalues(weight: Tensor) -> np.ndarray:
    """Eigenvalues of W^T W of square windows, spread evenly from one corner to the other."""
    side = min(*weight.shape, WINDOW)
    count = min(WINDOWS, -(-max(weight.shape) // side))
    starts = [np.linspace(0, length - side, count).astype(int).tolist() for length in weight.shape]
    windows = [weight[a : a + side, b : b + side].double() for a, b in zip(*starts, strict=True)]
    return torch.linalg.svdvals(torch.stack(windows)).square().flatten().numpy()
