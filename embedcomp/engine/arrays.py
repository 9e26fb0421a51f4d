"""Tensors as the engine reads them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor as the engine reads it; numpy has no bfloat16, so those are their bits."""
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return bits.numpy()
