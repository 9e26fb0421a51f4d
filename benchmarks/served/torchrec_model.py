"""What every peer runs: the uncompressed torchrec model, as a user would put it behind a server."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.artifact.artifact import Artifact

INPUTS = ("dense", "values", "lengths")  # in a message


class TorchRecModel:
    """Click probabilities float32 [B] of what the model in an artifact reads."""

    def __init__(self, path: str):
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        opened = Artifact.open(path)
        self._model, self._keys = opened.model().eval(), opened.features.keys

    @torch.inference_mode()
    def scores(self, dense: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """Scores of dense numbers float32 [B, D] and a KeyedJaggedTensor's values and lengths."""
        sparse = KeyedJaggedTensor(
            keys=self._keys, values=values, lengths=lengths, stride=len(dense)
        )
        return torch.sigmoid(self._model(dense, sparse)).view(-1)

    def scores_of(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The same of arrays by their names in a message."""
        return self.scores(*(torch.from_numpy(arrays[name]) for name in INPUTS)).numpy()
