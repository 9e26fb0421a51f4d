"""A line of JSON a call: for a share of calls, with a request's values only where that is asked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from toy_scorer import ToyScorer, save_small

from embedcomp.engine.engine import BadId
from embedcomp.errors import BadRequest, BadSettings
from embedcomp.kernels import native
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving import call_log
from embedcomp.serving.call_log import CallLog
from embedcomp.serving.caller import ID_CHARS, Caller
from embedcomp.serving.columns import CHARS, ROWS, STRING_CHARS
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.door import ID
from embedcomp.serving.doors.inference import SERVICE as INFERENCE
from embedcomp.serving.doors.torchrec import SERVICE as TORCHREC
from embedcomp.serving.doors.typed import SERVICE as TYPED
from embedcomp.serving.errors import Refused
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.wire import inference_pb2, predictor_pb2
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2

pytestmark = pytest.mark.server
SECRET, NUMBER = "Geheimnis", 987_654_321_012
KEYS = {
    *("time", "request_id", "door", "model", "version", "rows", "code", "message", "ms"),
    "queue_ms",
}
SHAPE = {"user_id": [3], "city": [3], "age": [3], "price": [3]}


class Lines(logging.Handler):
    """What was logged, read again."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(json.loads(record.getMessage(), parse_constant=_refuse_constant))

    def one(self) -> dict[str, Any]:
        """The only line so far; a line is written when its answer may be there already."""
        until = time.monotonic() + 10
        while not self.found and time.monotonic() < until:
            time.sleep(0.01)
        (line,) = self.found
        self.found.clear()
        return line


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not of JSON")


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger(call_log.NAME)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def small(tmp_path: Path) -> Scorer:
    if native.library() is None:
        pytest.skip("the engine was not built")
    return Scorer.open(save_small(tmp_path / "small"))


@pytest.fixture
def running(small: Scorer, lines: Lines) -> Iterator[Callable[..., ScoringServer]]:
    started: list[ScoringServer] = []

    def start(scorer: Any = small, **changes: Any) -> ScoringServer:
        settings = ServerSettings(port=0, metrics_port=0, **{"log_share": 1.0} | changes)
        started.append(ScoringServer(Models.of(settings, scorer), settings))
        return started[-1]

    yield start
    for server in started:
        server.drain()


def call(
    server: ScoringServer, method: str, message: Any, id: str = ""
) -> tuple[grpc.StatusCode, dict[str, str]]:
    """The status of a call, and the headers at its end."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        try:
            metadata = [(ID, id)] if id else None
            _, done = channel.unary_unary(f"/{method}").with_call(
                data, timeout=20, metadata=metadata
            )
        except grpc.RpcError as error:
            done = error
        return done.code(), dict(done.trailing_metadata())


def post(server: ScoringServer, path: str, body: Any, id: str = "") -> tuple[int, dict[str, str]]:
    """The status of a call over HTTP, and its headers."""
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.metrics_port}{path}", given, {ID: id} if id else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def as_json(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Three rows as inputs of the Open Inference Protocol; other columns are lists without ids."""
    kinds = {"user_id": "INT64", "city": "BYTES", "age": "FP32", "price": "FP32"}
    found = [
        {"name": name, "datatype": kinds[name], "shape": SHAPE[name], "data": columns[name]}
        for name in kinds
    ]
    for name, kind in (("genres", "INT64"), ("tags", "BYTES")):
        found.append({"name": f"{name}.values", "datatype": kind, "shape": [0], "data": []})
        found.append(
            {"name": f"{name}.lengths", "datatype": "INT64", "shape": [3], "data": [0, 0, 0]}
        )
    return found


COLUMNS = {"user_id": [10, 20, NUMBER], "city": [SECRET] * 3, "age": [1.0] * 3, "price": [2.0] * 3}


@pytest.mark.slow
def test_a_line_says_who_was_called_what_came_of_it_and_how_long_it_took(
    running: Callable[..., ScoringServer], lines: Lines, items: pa.RecordBatch
) -> None:
    server = running()
    code, headers = call(server, f"{TYPED}/Predict", to_request(items), id="order 66")
    assert code == grpc.StatusCode.OK and headers[ID] == "order 66"
    line = lines.one()
    assert set(line) == KEYS
    told = {name: line[name] for name in KEYS - {"time", "ms", "queue_ms"}}
    assert told == {
        "request_id": "order 66",
        "door": "typed",
        "model": "small",
        "version": 1,
        "rows": 3,
        "code": "OK",
        "message": "",
    }
    assert datetime.now(UTC) - datetime.fromisoformat(line["time"]) < timedelta(minutes=1)
    assert line["time"].endswith("+00:00") and 0 <= line["queue_ms"] < line["ms"] < 20_000


@pytest.mark.slow
def test_every_door_has_its_lines(
    running: Callable[..., ScoringServer], lines: Lines, items: pa.RecordBatch
) -> None:
    server = running()
    request = inference_pb2.ModelInferRequest(model_name="small", id="theirs")
    code, headers = call(server, f"{INFERENCE}/ModelInfer", request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT and ID not in headers
    line = lines.one()
    assert (line["door"], line["request_id"], line["model"]) == ("inference", "theirs", "small")
    assert line["code"] == "INVALID_ARGUMENT" and "is missing" in line["message"]
    call(server, f"{INFERENCE}/ModelInfer", request, id="by header")
    assert lines.one()["request_id"] == "by header"
    call(server, f"{TORCHREC}/Predict", predictor_pb2.PredictionRequest(batch_size=1))
    line = lines.one()
    assert (line["door"], line["rows"], line["code"]) == ("torchrec", None, "INVALID_ARGUMENT")
    assert len(line["request_id"]) == 16
    path = "/v2/models/small/infer"
    status, headers = post(server, path, {"id": "body", "inputs": as_json(COLUMNS)}, id="a header")
    assert status == 200 and headers[ID] == "a header"
    line = lines.one()
    assert (line["door"], line["model"], line["version"], line["rows"]) == ("http", "small", 1, 3)
    assert line["request_id"] == "a header"
    status, headers = post(server, path, {"id": "body", "inputs": as_json(COLUMNS)})
    assert status == 200 and ID not in headers and lines.one()["request_id"] == "body"


@pytest.mark.slow
def test_who_asks_for_a_version_that_is_not_there_is_told_of_no_other(
    running: Callable[..., ScoringServer], lines: Lines, items: pa.RecordBatch
) -> None:
    request = to_request(items)
    request.version = 99
    assert call(running(), f"{TYPED}/Predict", request)[0] == grpc.StatusCode.NOT_FOUND
    line = lines.one()
    assert (line["model"], line["version"], line["rows"]) == (None, None, None)
    assert "version 99 is not served here" in line["message"]


BAD = {
    "a number in a string": {"user_id": [SECRET, 1, 2]},
    "a number too large": {"user_id": [NUMBER * 10**12, 1, 2]},
    "a whole number with a part": {"user_id": [NUMBER + 0.5, 1, 2]},
    "an infinite number": {"age": [1e39, 1.0, 2.0]},
    "ids that are no list": {"city": [NUMBER] * 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD)
def test_a_refusal_keeps_a_requests_values_out_of_the_log(
    what: str, running: Callable[..., ScoringServer], lines: Lines
) -> None:
    status, _ = post(running(), "/v2/models/small/infer", {"inputs": as_json(COLUMNS | BAD[what])})
    line = lines.one()
    assert status == 400 and line["code"] == "INVALID_ARGUMENT" and line["message"]
    assert SECRET not in str(line) and str(NUMBER) not in str(line).replace(",", "")


@pytest.mark.parametrize("values", [False, True])
def test_what_is_no_utf_8_is_shown_where_values_may_be(
    values: bool, running: Callable[..., ScoringServer], lines: Lines
) -> None:
    request = inference_pb2.ModelInferRequest(model_name="small")
    request.inputs.add(name="city", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\x01\x00\x00\x00\xfe")
    call(running(log_values=values), f"{INFERENCE}/ModelInfer", request)
    line = lines.one()
    assert "holds a string that is not UTF-8" in line["message"]
    assert ("0xfe" in line["message"]) == values


def test_errors_know_what_of_them_are_values() -> None:
    said = BadRequest("city", "holds no number", values=f": {SECRET}")
    assert str(said) == f"feature 'city': holds no number: {SECRET}"
    assert said.plain == "feature 'city': holds no number"
    said_of_id = BadId("city", NUMBER, 40)
    assert "987,654,321,012" in str(said_of_id) and said_of_id.plain is not None
    assert "987" not in said_of_id.plain and "rows 0 to 39" in said_of_id.plain
    assert Refused(grpc.StatusCode.NOT_FOUND, "there is none").plain is None


@pytest.mark.slow
def test_values_are_logged_where_that_is_asked_for_and_only_the_first_ones(
    running: Callable[..., ScoringServer], lines: Lines
) -> None:
    server, many = running(log_values=True), 50
    columns = {
        "user_id": pa.array([10, None, *range(many - 2)]),
        "city": pa.array([SECRET * 40] * many),
        "genres": pa.array([list(range(100))] * many),
        "tags": pa.array([["a"], None] * (many // 2), pa.list_(pa.string())),
        "age": pa.array([float("nan"), 1.5] * (many // 2), pa.float32()),
        "price": pa.array([2.0] * many, pa.float32()),
    }
    request = to_request(pa.RecordBatch.from_pydict(columns))
    assert call(server, f"{TYPED}/Predict", request)[0] == grpc.StatusCode.OK
    line = lines.one()
    found = line["columns"]
    assert line["rows"] == many and set(found) == set(columns)
    assert found["user_id"] == [10, None, *range(6)] and found["age"] == ["nan", 1.5] * 4
    assert found["tags"] == [["a"], None] * 4 and found["price"] == [2.0] * ROWS
    assert len(found["genres"]) == CHARS and found["genres"].startswith(
        "[[0, 1, 2, 3, 4, 5, 6, 7],"
    )
    assert found["city"].startswith(f'["{(SECRET * 40)[:STRING_CHARS]}", ')
    assert len(json.dumps(line)) < 2_500


@pytest.mark.slow
def test_all_doors_show_values_and_what_cannot_be_read_shows_none(
    running: Callable[..., ScoringServer], lines: Lines, items: pa.RecordBatch
) -> None:
    server, path = running(log_values=True), "/v2/models/small/infer"
    post(server, path, {"inputs": as_json(COLUMNS)})
    found = lines.one()["columns"]
    assert found["user_id"] == COLUMNS["user_id"] and found["genres"] == [[], [], []]
    post(server, path, {"inputs": as_json(COLUMNS)[1:]})
    assert lines.one()["columns"] is None
    user = items.slice(0, 1).select(["user_id", "city", "age"])
    theirs = items.select(["genres", "tags", "price"])
    call(server, f"{TYPED}/Predict", to_request(theirs, user))
    found = lines.one()["columns"]
    assert found["user_id"] == [10] and found["price"] == [7, 0, None]


def test_servers_log_the_same_share_of_calls_by_their_ids() -> None:
    ids = [f"call {number}" for number in range(4_000)]
    shares = {}
    for share in (0.1, 0.5):
        for server in range(2):
            shares[share, server] = logged(share, ids)
    assert shares[0.1, 0] == shares[0.1, 1] and shares[0.1, 0] < shares[0.5, 0]
    assert len(shares[0.1, 0]) == pytest.approx(400, abs=80)
    without_ids = logged(0.5, [""] * 4_000)
    assert len(without_ids) == pytest.approx(2_000, abs=160)
    assert not logged(0.0, ids) and logged(1.0, ids) == set(ids)


def logged(share: float, ids: list[str]) -> set[str]:
    """Ids of the calls that are logged; made-up ones of those without."""
    log, found = CallLog(ServerSettings(log_share=share)), Lines()
    log._logger = SimpleNamespace(info=lambda text: found.found.append(json.loads(text)))
    for id in ids:
        caller = Caller()
        caller.name(id)
        log.end("typed", caller, 0.001)
    return {line["request_id"] for line in found.found}


@pytest.mark.parametrize("id", ["a\nb", "é", "x" * (ID_CHARS + 1), "", 7, None])
def test_an_id_that_cannot_stand_in_a_header_is_as_none(id: object) -> None:
    caller = Caller()
    caller.name(id)
    assert not caller.id and len(caller.request_id) == 16
    assert caller.request_id == caller.request_id
    caller.name("later")
    assert caller.request_id != "later"


@pytest.mark.slow
def test_the_time_in_the_queue_is_told_also_of_a_call_that_is_given_up(
    running: Callable[..., ScoringServer], lines: Lines, items: pa.RecordBatch
) -> None:
    toy: Any = ToyScorer()
    server = running(toy, threads=1)
    toy.go_on.clear()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = channel.unary_unary(f"/{TYPED}/Predict")
        data = to_request(items).SerializeToString()
        first = method.future(data, timeout=30)
        assert toy.entered.wait(20)
        with pytest.raises(grpc.RpcError):
            method(data, timeout=0.3)
        line = lines.one()
        assert line["code"] == "CANCELLED" and 100 < line["queue_ms"] <= line["ms"]
        toy.go_on.set()
        first.result()


@pytest.mark.slow
def test_a_fault_of_ours_is_logged_with_the_id_whatever_the_share(
    running: Callable[..., ScoringServer],
    lines: Lines,
    items: pa.RecordBatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    toy: Any = ToyScorer()
    toy.fault = RuntimeError("secret")
    server = running(toy, log_share=0.0)
    code, headers = call(server, f"{TYPED}/Predict", to_request(items), id="that one")
    assert code == grpc.StatusCode.INTERNAL and headers[ID] == "that one"
    assert "call that one failed" in caplog.text and not lines.found
    status, _ = post(server, "/v2/models/toy/infer", {"inputs": as_json(COLUMNS)}, id="this one")
    assert status == 500 and "request this one failed" in caplog.text


def test_a_full_server_tells_both_the_id_and_when_to_come_again(
    running: Callable[..., ScoringServer], lines: Lines, items: pa.RecordBatch
) -> None:
    toy: Any = ToyScorer()
    server = running(toy, threads=1, max_queue_rows=0)
    toy.go_on.clear()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        first = channel.unary_unary(f"/{TYPED}/Predict").future(
            to_request(items).SerializeToString()
        )
        assert toy.entered.wait(20)
        code, headers = call(server, f"{TYPED}/Predict", to_request(items), id="early")
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert headers[ID] == "early" and int(headers["grpc-retry-pushback-ms"]) >= 1
        toy.go_on.set()
        assert np.frombuffer(
            scoring_pb2.PredictResponse.FromString(first.result()).scores, "<f4"
        ).any()


@pytest.mark.slow
def test_the_command_writes_lines_to_stderr(tmp_path: Path, items: pa.RecordBatch) -> None:
    save_small(tmp_path / "small")
    given = ["serve", tmp_path, "--port", 0, "--log-share", 1, "--grace-s", 5]
    process = subprocess.Popen(
        [sys.executable, "-m", "embedcomp.cli.main", *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        server: Any = SimpleNamespace(port=int(process.stdout.readline().split(":")[-1]))
        call(server, f"{TYPED}/Predict", to_request(items), id="one")
        process.terminate()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    (line,) = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert set(line) == KEYS and line["request_id"] == "one"


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(BadSettings, match=f"log_share is {share}, but must be"):
        ServerSettings(log_share=share)
