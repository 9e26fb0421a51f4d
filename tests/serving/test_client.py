from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pyarrow as pa
import pytest

from embedcomp.errors import BadRequest, BadSettings
from embedcomp.serving.client import Client
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.errors import CallFailed, Unreachable
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

ITEMS = pa.RecordBatch.from_pydict({"a": [1]})


class Unsteady:
    """Answers UNAVAILABLE, or another status, for the first `failures` calls."""

    def __init__(self, failures: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE):
        self.calls, self._failures, self._code = 0, failures, code

    def __call__(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        if self.calls <= self._failures:
            context.abort(self._code, "draining")
        return wire.PredictResponse(scores=np.float32([0.5]).tobytes()).SerializeToString()


@pytest.fixture
def grpc_server() -> Iterator[grpc.Server]:
    server = grpc.server(ThreadPoolExecutor(2))
    yield server
    server.stop(None).wait()


def start(server: grpc.Server, answer: Unsteady) -> str:
    methods = {"Predict": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return f"127.0.0.1:{port}"


@pytest.mark.server
def test_a_call_that_no_server_took_is_sent_again(grpc_server: grpc.Server) -> None:
    answer = Unsteady(2)
    with Client(start(grpc_server, answer), retries=2) as client:
        assert client.predict(ITEMS) == [0.5]
    assert answer.calls == 3


@pytest.mark.server
def test_retries_come_to_an_end(grpc_server: grpc.Server) -> None:
    answer = Unsteady(9)
    with (
        Client(start(grpc_server, answer), retries=1) as client,
        pytest.raises(Unreachable, match=r"draining.*start one with"),
    ):
        client.predict(ITEMS)
    assert answer.calls == 2


@pytest.mark.server
@pytest.mark.parametrize("retries", [0, 3])
def test_a_refused_request_is_not_sent_again(grpc_server: grpc.Server, retries: int) -> None:
    answer = Unsteady(9, grpc.StatusCode.INVALID_ARGUMENT)
    with Client(start(grpc_server, answer), retries=retries) as client, pytest.raises(CallFailed):
        client.predict(ITEMS)
    assert answer.calls == 1


@pytest.mark.parametrize("retries", [0, 1])
def test_a_refused_connection_names_the_target_and_the_way_out(retries: int) -> None:
    with socket.socket() as taken:  # bound and not listening, so every connection is refused
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            Client(target, retries=retries) as client,
            pytest.raises(Unreachable, match=f"no server answers at {target}.*embedcomp serve"),
        ):
            client.metadata()


def test_a_column_that_cannot_be_sent_is_refused_before_any_call() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(BadRequest, match="feature 'a'"):
        client.predict(pa.RecordBatch.from_pydict({"a": [{"b": 1}]}))


@pytest.mark.parametrize("change", [{"timeout_s": 0}, {"retries": 5}, {"retries": -1}])
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(BadSettings, match=f"{next(iter(change))} is "):
        Client("127.0.0.1:1", **change)
