"""The torchrec model behind KServe's Python server: `... MODEL GRPC_PORT HTTP_PORT`.

It writes no line a call, and the requests' ids come encoded: both are in its favour.
"""

from __future__ import annotations

import logging
import sys

import kserve

from benchmarks.served.torchrec_model import TorchRecModel


class Model(kserve.Model):
    """Scores by the Open Inference Protocol's tensors."""

    def __init__(self, path: str):
        super().__init__("torchrec")
        self._model = TorchRecModel(path)
        self.ready = True

    async def predict(
        self, payload: kserve.InferRequest, headers: object = None, response_headers: object = None
    ) -> kserve.InferResponse:
        scores = self._model.scores_of({one.name: one.as_numpy() for one in payload.inputs})
        score = kserve.InferOutput(name="score", shape=list(scores.shape), datatype="FP32")
        score.set_data_from_numpy(scores)
        return kserve.InferResponse(payload.id, "torchrec", [score])


def main() -> None:
    path, grpc_port, http_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    server = kserve.ModelServer(
        grpc_port=grpc_port, http_port=http_port, enable_latency_logging=False
    )
    logging.getLogger("kserve").setLevel(logging.WARNING)
    server.start([Model(path)])


if __name__ == "__main__":
    main()
