"""The torchrec model behind Ray Serve's gRPC proxy: `... MODEL GRPC_PORT HTTP_PORT`.

It writes no line a call, has no dashboard, and one replica, since all of it has one core.
"""

from __future__ import annotations

import signal
import sys

import grpc
import numpy as np
import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from embedcomp.serving.wire import inference_pb2 as wire

SERVICE = wire.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
KINDS = {"FP32": "<f4", "INT64": "<i8"}


def add_service(servicer: object, server: grpc.Server) -> None:
    """What the proxy takes: each method goes to the deployment's of that name."""
    # Bytes, as they are: they reach the replica by pickle, which knows no messages of this module.
    infer = grpc.unary_unary_rpc_method_handler(getattr(servicer, "ModelInfer", None))
    handler = grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": infer})
    server.add_generic_rpc_handlers((handler,))


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=64,
    logging_config={"enable_access_log": False, "log_level": "WARNING"},
)
class Model:
    """Scores by the Open Inference Protocol's tensors."""

    def __init__(self, path: str):
        from benchmarks.served.torchrec_model import TorchRecModel

        self._model = TorchRecModel(path)

    async def ModelInfer(self, data: bytes) -> wire.ModelInferResponse:
        request = wire.ModelInferRequest.FromString(data)
        pairs = zip(request.inputs, request.raw_input_contents, strict=True)
        scores = self._model.scores_of(
            {
                one.name: np.frombuffer(raw, KINDS[one.datatype]).reshape(one.shape)
                for one, raw in pairs
            }
        )
        response = wire.ModelInferResponse(
            model_name="torchrec", raw_output_contents=[scores.tobytes()]
        )
        response.outputs.add(name="score", datatype="FP32", shape=scores.shape)
        return response


def main() -> None:
    path, grpc_port, http_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        serve.start(
            http_options=HTTPOptions(host="127.0.0.1", port=http_port),
            grpc_options=gRPCOptions(
                port=grpc_port, grpc_servicer_functions=[f"{__spec__.name}.add_service"]
            ),
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        serve.run(Model.bind(path), name="torchrec")
        signal.pause()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
