from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile

import grpc
import numpy as np
import pyarrow as pa
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from toy_scorer import FEATURES, ToyScorer

from embedcomp.engine.description import (
    COMPILED,
    MACHINE_CODE,
    OWN_CODE,
    TORCH,
    Description,
    cores,
)
from embedcomp.errors import BadSettings
from embedcomp.serving.client import Client
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.typed import KINDS, SERVICE, Typed, described
from embedcomp.serving.errors import CallFailed, CannotListen, Refused, Unreachable
from embedcomp.serving.metrics import Metrics
from embedcomp.serving.models import Models
from embedcomp.serving.scoring import Scoring
from embedcomp.serving.served import Served
from embedcomp.serving.server import SERVICES, ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

pytestmark = pytest.mark.server
CODE = grpc.StatusCode
WAYS = (COMPILED, MACHINE_CODE, OWN_CODE, TORCH)
Columns = dict[str, pa.Array]


def batch(columns: Columns) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def test_scores_over_the_wire_are_the_scorers_own_to_the_last_bit(
    client: Client, scorer: ToyScorer, items: pa.RecordBatch
) -> None:
    scores = client.predict(items)
    assert scores.dtype == np.float32 and len(np.unique(scores)) == 3
    np.testing.assert_array_equal(scores, scorer.score(items))


def test_the_order_of_columns_does_not_matter(
    client: Client, items: pa.RecordBatch, columns: Columns
) -> None:
    backwards = batch(dict(reversed(columns.items())))
    np.testing.assert_array_equal(client.predict(backwards), client.predict(items))


def test_a_users_row_holds_for_every_candidate(
    client: Client, scorer: ToyScorer, columns: Columns
) -> None:
    names = ["user_id", "city", "age", "tags"]
    user = batch({name: columns[name][1:2] for name in names})
    items = batch({name: columns[name] for name in columns if name not in names})
    repeated = {name: pa.concat_arrays([columns[name][1:2]] * 3) for name in names}
    expected = scorer.score(batch(columns | repeated))
    np.testing.assert_array_equal(client.predict(items, user), expected)


def test_no_candidates_have_no_scores(client: Client, items: pa.RecordBatch) -> None:
    assert client.predict(items.slice(0, 0)).shape == (0,)


def refused(
    client: Client, items: pa.RecordBatch, user: pa.RecordBatch | None = None
) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        client.predict(items, user)
    return caught.value


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("user_id", pa.array(["10", "20", "30"])),
        ("user_id", pa.array([[1], [2], [3]])),
        ("city", pa.array([1, 2, 3])),
        ("genres", pa.array([1, 2, 3])),
        ("genres", pa.array([["a"], [], []])),
        ("tags", pa.array([[1], [], []])),
        ("age", pa.array(["old", "new", "x"])),
        ("age", pa.array([1.0, float("inf"), 0.0], pa.float32())),
        ("price", None),
    ],
)
def test_a_column_that_does_not_fit_its_feature_is_an_invalid_argument_with_its_name(
    client: Client, columns: Columns, name: str, column: pa.Array | None
) -> None:
    changed = {n: c for n, c in (columns | {name: column}).items() if c is not None}
    error = refused(client, batch(changed))
    assert error.code == CODE.INVALID_ARGUMENT and f"feature '{name}'" in str(error)


def test_nulls_may_come_in_any_type(client: Client, columns: Columns) -> None:
    typed = {name: pa.nulls(3, FEATURES.column_type(name)) for name in columns}
    expected = client.predict(batch(typed))
    for kind in (pa.null(), pa.int64(), pa.string(), pa.float32(), pa.list_(pa.string())):
        nulls = batch({name: pa.nulls(3, kind) for name in columns})
        np.testing.assert_array_equal(client.predict(nulls), expected)


def test_damaged_columns_are_an_invalid_argument_with_their_name(
    target: str, items: pa.RecordBatch
) -> None:
    request = to_request(items)
    request.items["genres"].lengths = b"123"
    code, details = raw_call(target, "Predict", request.SerializeToString())
    assert code == CODE.INVALID_ARGUMENT and "feature 'genres': has 3 bytes" in details


@pytest.mark.parametrize("method", ["Predict", "Metadata"])
def test_bytes_that_are_no_request_are_an_invalid_argument(target: str, method: str) -> None:
    code, details = raw_call(target, method, b"\xff\xff\xff")
    assert code == CODE.INVALID_ARGUMENT and f"no embedcomp.v1.{method}Request" in details


def raw_call(target: str, method: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=10)
    return caught.value.code(), caught.value.details()


def test_too_many_candidates_are_refused_with_both_numbers(target: str, columns: Columns) -> None:
    many = batch({name: column.take([0] * 101) for name, column in columns.items()})
    code, details = raw_call(target, "Predict", to_request(many).SerializeToString())
    assert code == CODE.INVALID_ARGUMENT
    assert "101 candidates, but this server takes 100" in details


def test_a_users_long_list_counts_once_for_every_candidate(
    client: Client, columns: Columns
) -> None:
    user = batch({"genres": pa.array([list(range(400))])})
    error = refused(client, batch({n: c for n, c in columns.items() if n != "genres"}), user)
    assert error.code == CODE.INVALID_ARGUMENT
    assert "feature 'genres': has 1,200 ids over all candidates" in str(error)


def test_a_message_above_the_limit_is_refused_with_a_way_out(
    scorer: ToyScorer, items: pa.RecordBatch
) -> None:
    settings = ServerSettings(port=0, max_message_bytes=100)
    with (
        ScoringServer(Models.of(settings, scorer), settings) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        error = refused(client, items)
    assert error.code == CODE.RESOURCE_EXHAUSTED and "send smaller requests" in str(error)


@pytest.mark.parametrize("asked", [{"model": "other"}, {"version": 8}])
def test_another_model_or_version_is_not_found(
    target: str, items: pa.RecordBatch, asked: dict[str, str | int]
) -> None:
    with Client(target, **asked) as client:
        error = refused(client, items)
        with pytest.raises(CallFailed, match="NOT_FOUND"):
            client.metadata()
    assert error.code == CODE.NOT_FOUND and "only 'toy' version 7" in str(error)


def test_the_model_and_version_that_are_served_may_be_asked_for(
    target: str, items: pa.RecordBatch
) -> None:
    with Client(target, model="toy", version=7) as client:
        assert len(client.predict(items)) == 3


def test_a_fault_of_the_server_stays_in_its_log(
    client: Client,
    scorer: ToyScorer,
    items: pa.RecordBatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer.fault = RuntimeError("secret")
    error = refused(client, items)
    assert error.code == CODE.INTERNAL and "its log has the details" in str(error)
    assert "secret" not in str(error) and "RuntimeError: secret" in caplog.text


def test_calls_beyond_those_that_are_taken_are_refused_at_once_with_a_hint(
    scorer: ToyScorer, items: pa.RecordBatch
) -> None:
    settings = ServerSettings(port=0, threads=1, calls=1)
    with (
        ScoringServer(Models.of(settings, scorer), settings) as server,
        Client(f"127.0.0.1:{server.port}") as client,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        scorer.go_on.clear()
        first = pool.submit(client.predict, items)
        assert scorer.entered.wait(10)
        error = refused(client, items)
        assert error.code == CODE.RESOURCE_EXHAUSTED and "1 calls at a time" in str(error)
        method = channel.unary_unary(f"/{SERVICE}/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            method(to_request(items).SerializeToString(), timeout=10)
        assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1
        assert client.metadata().model == "toy"  # what needs no scoring is answered all the same
        found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert found.status == health_pb2.HealthCheckResponse.SERVING
        scorer.go_on.set()
        assert len(first.result(10)) == 3


def test_calls_beyond_the_queue_are_refused_and_the_others_finish(
    scorer: ToyScorer, items: pa.RecordBatch
) -> None:
    settings = ServerSettings(port=0, threads=1, max_queue_rows=0)
    with (
        ScoringServer(Models.of(settings, scorer), settings) as server,
        Client(f"127.0.0.1:{server.port}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        scorer.go_on.clear()
        first = pool.submit(client.predict, items)
        assert scorer.entered.wait(10)
        assert refused(client, items).code == CODE.RESOURCE_EXHAUSTED
        scorer.go_on.set()
        assert len(first.result(10)) == 3


def test_a_call_that_takes_too_long_ends_with_a_way_out(
    target: str, scorer: ToyScorer, items: pa.RecordBatch
) -> None:
    scorer.go_on.clear()
    with Client(target, timeout_s=0.2) as client:
        error = refused(client, items)
    scorer.go_on.set()
    assert error.code == CODE.DEADLINE_EXCEEDED and "allow more time" in str(error)


class GivenUp:
    """The context of a call whose client has gone, or whose time is up."""

    def is_active(self) -> bool:
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False


def test_a_call_that_was_given_up_while_it_waited_is_not_scored(
    scorer: ToyScorer, items: pa.RecordBatch
) -> None:
    models = Models.of(ServerSettings(), scorer)
    service = Typed(models, Scoring(models, ServerSettings(), Metrics(models)))
    with pytest.raises(Refused, match="cancelled or out of time") as caught:
        predict = service._scoring.in_room(service._predict)
        predict(to_request(items).SerializeToString(), GivenUp())
    assert caught.value.code == CODE.CANCELLED and not scorer.entered.is_set()


def test_metadata_has_every_feature_in_order(client: Client) -> None:
    found = client.metadata()
    assert (found.model, found.version, found.max_rows) == ("toy", 7, 100)
    assert [f.name for f in found.features] == FEATURES.names
    genres, age = found.features[2], found.features[4]
    assert genres == wire.Feature(
        name="genres",
        kind=wire.Feature.KIND_CATEGORICAL,
        type=wire.Feature.TYPE_INT64,
        side=wire.Feature.SIDE_ITEM,
        multi_valued=True,
        rows=6,
    )
    assert (age.kind, age.type, age.side) == (
        wire.Feature.KIND_DENSE,
        wire.Feature.TYPE_FLOAT32,
        wire.Feature.SIDE_USER,
    )
    assert found.features[1].type == wire.Feature.TYPE_STRING


def test_metadata_says_what_scores_and_why(scorer: ToyScorer, client: Client) -> None:
    assert client.metadata().engine == wire.Engine(
        kind=wire.Engine.KIND_COMPILED, precision="float32", threads=1
    )
    scorer.description = Description(
        name=TORCH, threads=2, reason="there is no engine", saved_for="int8"
    )
    found = described(Served(scorer, ServerSettings())).engine
    assert (found.kind, found.precision, found.threads) == (wire.Engine.KIND_TORCH, "float32", 2)
    assert found.reason == (
        "there is no engine; products are float32 and not int8, as it was saved"
    )


def test_every_way_of_scoring_has_a_kind_of_its_own() -> None:
    assert set(KINDS) == set(WAYS)
    assert len({*KINDS.values(), wire.Engine.KIND_UNSPECIFIED}) == len(WAYS) + 1


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_is_serving(target: str, service: str) -> None:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services(target: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(stub.ServerReflectionInfo(iter([request]), timeout=10))
    names = {service.name for service in answer.list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health"} <= names


def test_two_servers_cannot_share_a_port(server: ScoringServer, scorer: ToyScorer) -> None:
    with pytest.raises(CannotListen, match=rf"127.0.0.1:{server.port}: the port is in use"):
        ScoringServer(Models.of(ServerSettings(), scorer), ServerSettings(port=server.port))


@pytest.mark.parametrize(
    "change",
    [{"port": 70_000}, {"threads": 0}, {"max_queue_rows": -1}, {"max_rows": 0}, {"grace_s": -1.0}],
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(BadSettings, match=f"{next(iter(change))} is "):
        replace(ServerSettings(), **change)


def test_sigterm_finishes_calls_in_flight_reports_it_and_exits_with_0(
    serve_slowly: Callable[[float], tuple[subprocess.Popen[str], str]],
    items: pa.RecordBatch,
    scorer: ToyScorer,
) -> None:
    process, target = serve_slowly(2.0)
    watching = grpc.insecure_channel(target)
    statuses = health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest())
    assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
    with Client(target, retries=0) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.predict, items)
        said = list(takewhile(lambda line: line != "scoring\n", iter(process.stdout.readline, "")))
        assert said == [f"scored by compiled engine, float32; threads: {cores(None)}\n"]
        process.terminate()
        assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.close()
        np.testing.assert_array_equal(call.result(20), scorer.score(items))
        assert process.wait(20) == 0
        with pytest.raises(Unreachable):
            client.predict(items)
