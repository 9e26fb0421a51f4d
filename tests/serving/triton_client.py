"""Scores rows by Triton's own client, in a process of its own: its messages have our names.

`python triton_client.py TARGET MODEL FILE OUT`: FILE has the inputs (numpy.savez), OUT gets what
the server said of itself and the scores.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.grpc import service_pb2 as theirs
from tritonclient.utils import np_to_triton_dtype


def main(target: str, model: str, file: str, out: str) -> None:
    client = InferenceServerClient(target)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    told = client.get_model_metadata(model, as_json=True)
    given = []
    with np.load(file, allow_pickle=True) as inputs:
        for name, array in inputs.items():
            one = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            one.set_data_from_numpy(array)
            given.append(one)
    found = client.infer(model, given, outputs=[InferRequestedOutput("score")], request_id="7")
    response = found.get_response()
    told |= {
        "server": client.get_server_metadata(as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "version": response.model_version,
        "id": response.id,
        "messages": {name: fields_of(name) for name in json.loads(sys.stdin.read())},
    }
    np.savez(out, score=found.as_numpy("score"), told=json.dumps(told))


def fields_of(message: str) -> list[list[object]]:
    """Names, numbers and types of a message's fields, as Triton has them."""
    described = theirs.DESCRIPTOR.message_types_by_name[message]
    return [[field.name, field.number, field.type] for field in described.fields]


if __name__ == "__main__":
    main(*sys.argv[1:])
