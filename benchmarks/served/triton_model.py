"""The torchrec model as Triton's Python backend runs it.

Tensors go by DLPack, without a copy; arrays could not, since the backend knows NumPy 1 alone.
"""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as triton
from torch.utils.dlpack import from_dlpack, to_dlpack

from benchmarks.served.torchrec_model import INPUTS, TorchRecModel


class TritonPythonModel:
    """Scores by the Open Inference Protocol's tensors."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._model = TorchRecModel(parameters["path"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = (triton.get_input_tensor_by_name(request, name) for name in INPUTS)
        scores = self._model.scores(*(from_dlpack(tensor.to_dlpack()) for tensor in given))
        return triton.InferenceResponse([triton.Tensor.from_dlpack("score", to_dlpack(scores))])
