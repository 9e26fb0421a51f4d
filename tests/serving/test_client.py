from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from toy_scorer import ToyScorer

from embedcomp.client import AsyncClient, Client
from embedcomp.errors import BadRequest, BadSettings
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.errors import CallFailed, Unreachable
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

ITEMS = pa.RecordBatch.from_pydict({"a": [1]})
BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
PUSHBACK_S = 0.4  # more than gRPC's own first pause
both = pytest.mark.parametrize("kind", [Client, AsyncClient])


def ask(kind: type[Any], target: str, *arguments: Any, **options: Any) -> Any:
    """The scores that one of the clients gets."""
    if kind is Client:
        with Client(target, **options) as client:
            return client.predict(*arguments)

    async def awaited() -> Any:
        async with AsyncClient(target, **options) as client:
            return await client.predict(*arguments)

    return asyncio.run(awaited())


class Unsteady:
    """Answers UNAVAILABLE, or another status, for the first `failures` calls."""

    def __init__(
        self,
        failures: int,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        pushback_ms: int | None = None,
    ):
        self.calls, self._failures, self._code = 0, failures, code
        self._pushback_ms = pushback_ms
        self.times: list[float] = []

    def __call__(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        self.times.append(time.monotonic())
        if self.calls <= self._failures:
            if self._pushback_ms is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self._pushback_ms)),))
            context.abort(self._code, "draining")
        return answer_of(wire.PredictRequest.FromString(data))


class Limited:
    """Takes `max_rows` candidates; a score is the candidate's column "a" and the user's "b"."""

    def __init__(self, max_rows: int, gate: Any = None):
        self.max_rows, self._gate = max_rows, gate
        self.rows: list[int] = []
        self.peers: set[str] = set()
        self.asked = 0

    def __call__(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = wire.PredictRequest.FromString(data)
        ids = np.frombuffer(request.items["a"].ids, "<i8")
        self.rows.append(len(ids))
        self.peers.add(context.peer())
        if len(ids) > self.max_rows:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{len(ids)} candidates are too many")
        if self._gate is not None:
            self._gate()
        return answer_of(request)

    def metadata(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked += 1
        return wire.MetadataResponse(max_rows=self.max_rows).SerializeToString()


def answer_of(request: wire.PredictRequest) -> bytes:
    scores = np.frombuffer(request.items["a"].ids, "<i8").astype("<f4")
    if "b" in request.user:
        scores = scores + np.frombuffer(request.user["b"].ids, "<i8").astype("<f4")
    return wire.PredictResponse(scores=scores.tobytes()).SerializeToString()


@pytest.fixture
def grpc_server() -> Iterator[grpc.Server]:
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    yield server
    server.stop(None).wait()


def start(server: grpc.Server, answer: Any) -> str:
    methods = {"Predict": grpc.unary_unary_rpc_method_handler(answer)}
    if hasattr(answer, "metadata"):
        methods["Metadata"] = grpc.unary_unary_rpc_method_handler(answer.metadata)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return f"127.0.0.1:{port}"


@pytest.mark.server
@both
def test_a_call_that_no_server_took_is_sent_again(
    grpc_server: grpc.Server, kind: type[Any]
) -> None:
    answer = Unsteady(2)
    assert ask(kind, start(grpc_server, answer), ITEMS, retries=2) == [1]
    assert answer.calls == 3


@pytest.mark.server
@both
def test_retries_come_to_an_end(grpc_server: grpc.Server, kind: type[Any]) -> None:
    answer = Unsteady(9)
    with pytest.raises(Unreachable, match=r"draining.*start one with"):
        ask(kind, start(grpc_server, answer), ITEMS, retries=1)
    assert answer.calls == 2


@pytest.mark.server
@both
@pytest.mark.parametrize(
    ("code", "options"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, {"retries": 0}),
        (grpc.StatusCode.INVALID_ARGUMENT, {"retries": 3, "retry_exhausted": True}),
        (BUSY, {}),
        (BUSY, {"retries": 0, "retry_exhausted": True}),
    ],
)
def test_what_it_was_not_told_to_send_again_is_not(
    grpc_server: grpc.Server, kind: type[Any], code: grpc.StatusCode, options: dict[str, Any]
) -> None:
    answer = Unsteady(9, code)
    with pytest.raises(CallFailed, match=code.name):
        ask(kind, start(grpc_server, answer), ITEMS, **options)
    assert answer.calls == 1


@pytest.mark.slow
@pytest.mark.server
@both
def test_a_busy_server_is_asked_again_when_it_says(
    grpc_server: grpc.Server, kind: type[Any]
) -> None:
    answer = Unsteady(2, BUSY, round(1000 * PUSHBACK_S))
    assert ask(kind, start(grpc_server, answer), ITEMS, retry_exhausted=True) == [1]
    assert answer.calls == 3
    assert np.diff(answer.times).min() > PUSHBACK_S - 0.01


@pytest.mark.server
@both
def test_a_server_that_says_never_is_not_asked_again(
    grpc_server: grpc.Server, kind: type[Any]
) -> None:
    answer = Unsteady(9, BUSY, -1)
    with pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED"):
        ask(kind, start(grpc_server, answer), ITEMS, retry_exhausted=True)
    assert answer.calls == 1


@pytest.mark.server
@both
def test_a_large_request_is_sent_again_as_well(grpc_server: grpc.Server, kind: type[Any]) -> None:
    answer = Unsteady(1)
    many = np.arange(500_000)
    items = pa.RecordBatch.from_pydict({"a": many})
    answer.metadata = Limited(len(many)).metadata
    assert (ask(kind, start(grpc_server, answer), items) == many).all()
    assert answer.calls == 2


@pytest.mark.server
@both
@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize(("rows", "parts"), [(10, [10]), (11, [1, 10]), (47, [7, 10, 10, 10, 10])])
def test_a_batch_larger_than_the_servers_limit_is_split_and_joined(
    grpc_server: grpc.Server, kind: type[Any], in_flight: int, rows: int, parts: list[int]
) -> None:
    answer = Limited(10)
    items = pa.RecordBatch.from_pydict({"a": np.arange(rows)})
    user = pa.RecordBatch.from_pydict({"b": [100]})
    found = ask(kind, start(grpc_server, answer), items, user, in_flight=in_flight)
    assert found.dtype == np.float32 and (found == 100 + np.arange(rows)).all()
    too_many = [rows] * (rows > 10)
    assert sorted(answer.rows) == parts + too_many and answer.asked == len(too_many)


@pytest.mark.server
@both
def test_parts_are_scored_as_the_whole_is(
    target: str, kind: type[Any], items: pa.RecordBatch, scorer: ToyScorer
) -> None:
    many = items.take(pa.array(np.arange(257) % 3))
    user = pa.RecordBatch.from_pydict({"age": pa.array([40.0], pa.float32())})
    of_items = many.drop_columns(["age"])
    assert (ask(kind, target, of_items, user) == scorer.score(of_items, user)).all()


@pytest.mark.server
@both
def test_parts_are_in_flight_together(grpc_server: grpc.Server, kind: type[Any]) -> None:
    together = Barrier(3)
    answer = Limited(10, lambda: together.wait(20))
    items = pa.RecordBatch.from_pydict({"a": np.arange(60)})
    found = ask(kind, start(grpc_server, answer), items, in_flight=3, timeout_s=60)
    assert (found == np.arange(60)).all()


@pytest.mark.server
@both
def test_the_first_part_that_fails_ends_the_call(grpc_server: grpc.Server, kind: type[Any]) -> None:
    def gate() -> None:
        raise ValueError("a fault")

    answer = Limited(1, gate)
    items = pa.RecordBatch.from_pydict({"a": np.arange(1000)})
    with pytest.raises(CallFailed, match="a fault"):
        ask(kind, start(grpc_server, answer), items, in_flight=2)
    assert len(answer.rows) < 100


@pytest.mark.server
@both
def test_a_column_that_cannot_be_sent_ends_a_split_call(
    grpc_server: grpc.Server, kind: type[Any]
) -> None:
    items = pa.RecordBatch.from_pydict({"a": [{"b": 1}] * 50})
    with pytest.raises(BadRequest, match="feature 'a'"):
        ask(kind, start(grpc_server, Limited(10)), items)


@pytest.mark.server
@both
def test_a_call_without_rows_is_one_call(grpc_server: grpc.Server, kind: type[Any]) -> None:
    answer = Limited(10)
    none = pa.RecordBatch.from_pydict({"a": pa.array([], pa.int64())})
    assert len(ask(kind, start(grpc_server, answer), none)) == 0
    assert answer.rows == [0]


@pytest.mark.server
def test_a_limit_that_has_become_smaller_is_asked_for_again(grpc_server: grpc.Server) -> None:
    answer = Limited(50)
    items = pa.RecordBatch.from_pydict({"a": np.arange(40)})
    with Client(start(grpc_server, answer)) as client:
        assert len(client.predict(items)) == 40
        for answer.max_rows in (30, 7, 50):
            assert (client.predict(items) == np.arange(40)).all()
    assert sorted(answer.rows[-6:]) == [5, 7, 7, 7, 7, 7] and answer.asked == 2


@pytest.mark.server
@both
def test_the_limit_is_asked_for_before_a_very_large_batch_is_sent(
    grpc_server: grpc.Server, kind: type[Any]
) -> None:
    answer = Limited(1000)
    items = pa.RecordBatch.from_pydict({"a": np.arange(2500)})
    assert (ask(kind, start(grpc_server, answer), items) == np.arange(2500)).all()
    assert sorted(answer.rows) == [500, 1000, 1000]


@pytest.mark.server
@both
def test_a_batch_that_is_wrong_otherwise_is_refused_as_before(
    grpc_server: grpc.Server, kind: type[Any]
) -> None:
    answer = Unsteady(9, grpc.StatusCode.INVALID_ARGUMENT)
    answer.metadata = Limited(10).metadata
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT: draining"):
        ask(kind, start(grpc_server, answer), pa.RecordBatch.from_pydict({"a": [1, 2]}))
    assert answer.calls == 1


@pytest.mark.slow
@pytest.mark.server
@both
def test_the_deadline_is_that_of_all_parts_together(
    grpc_server: grpc.Server, kind: type[Any]
) -> None:
    go_on = Event()
    answer = Limited(1, lambda: go_on.wait(0.2))
    items = pa.RecordBatch.from_pydict({"a": np.arange(1000)})
    with pytest.raises(CallFailed, match=r"DEADLINE_EXCEEDED.*allow more time"):
        ask(kind, start(grpc_server, answer), items, None, 1.0, in_flight=1)
    go_on.set()
    assert len(answer.rows) < 100


@pytest.mark.server
@both
@pytest.mark.parametrize("connections", [1, 3])
def test_calls_take_the_connections_in_turns(
    grpc_server: grpc.Server, kind: type[Any], connections: int
) -> None:
    answer = Limited(10)
    items = pa.RecordBatch.from_pydict({"a": np.arange(60)})
    ask(kind, start(grpc_server, answer), items, connections=connections)
    assert len(answer.peers) == connections


@pytest.mark.server
def test_many_tasks_share_a_client(grpc_server: grpc.Server) -> None:
    target = start(grpc_server, Limited(10))

    async def all_of_them() -> list[Any]:
        async with AsyncClient(target, connections=2) as client:
            batches = [pa.RecordBatch.from_pydict({"a": np.arange(n, n + 25)}) for n in range(20)]
            assert (await client.metadata()).max_rows == 10
            return await asyncio.gather(*(client.predict(batch) for batch in batches))

    for number, scores in enumerate(asyncio.run(all_of_them())):
        assert (scores == np.arange(number, number + 25)).all()


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


@both
@pytest.mark.parametrize(
    "change",
    [{"timeout_s": 0}, {"retries": 5}, {"retries": -1}, {"connections": 0}, {"in_flight": 0}],
)
def test_settings_out_of_range_are_refused(kind: type[Any], change: dict[str, int]) -> None:
    with pytest.raises(BadSettings, match=f"{next(iter(change))} is "):
        kind("127.0.0.1:1", **change)


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="certificate and its key go together"):
        Client("127.0.0.1:1", key=tmp_path / "key")
