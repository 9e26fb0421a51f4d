"""Whatever is sent, the server says what is wrong with it, scores on and keeps nothing of it."""

from __future__ import annotations

import json
import math
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.doors import http, inference, torchrec, typed
from embedcomp.serving.models import Models
from embedcomp.serving.repository import Repository
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.wire import inference_pb2 as oip
from embedcomp.serving.wire import predictor_pb2 as theirs
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as ours
from tests.serving import hostile
from tests.serving.hostile import DOORS, MODEL, Server, attack, served
from tests.serving.toy_scorer import save_small

pytestmark = pytest.mark.server
MESSAGES = 300  # of a door; `python -m tests.serving.hostile` sends many more
SETTINGS = ServerSettings(port=0, metrics_port=0, max_rows=100, max_message_bytes=1 << 20)
HOST, CODE = "127.0.0.1", grpc.StatusCode
PREDICT, INFER = f"/{typed.SERVICE}/Predict", f"/{inference.SERVICE}/ModelInfer"
SPARSE, LOAD = f"/{torchrec.SERVICE}/Predict", f"/{inference.SERVICE}/RepositoryModelLoad"
INFER_JSON = f"/v2/models/{MODEL}/infer"
BILLION = 1_000_000_000


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A compiled artifact by door; those that take the same features have one."""
    made: dict[int, Path] = {}
    for door in DOORS.values():
        if id(door.features) not in made:
            folder = tmp_path_factory.mktemp("models") / MODEL
            made[id(door.features)] = save_small(folder, features=door.features, compiled=True)
    return {name: made[id(door.features)] for name, door in DOORS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", DOORS)
def test_mutated_messages_are_answered_and_do_no_harm(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    with served(places[name], tmp_path / "log") as server:
        found = attack(DOORS[name], server, Scorer.open(places[name]), MESSAGES, seed=5)
    assert not found.faults, found.faults
    assert found.sent == MESSAGES and found.statuses.total() == MESSAGES
    refused = found.statuses["INVALID_ARGUMENT"] + found.statuses["400"]
    assert MESSAGES / 2 < refused < MESSAGES


@pytest.mark.slow
def test_a_fault_is_found(tmp_path: Path) -> None:
    """The run itself fails where a server does not do as it should."""
    process = subprocess.Popen(["sleep", "60"], text=True)
    try:
        with socket.create_server((HOST, 0)) as silent:
            silent.close()
            gone = Server(process, 1, 1, tmp_path / "log")
            door = replace(DOORS["typed"], good=lambda _: [hostile.Sent(PREDICT, b"", np.ones(1))])
            found = attack(door, gone, None, 8, seed=0)  # type: ignore[arg-type]
    finally:
        process.kill()
        process.wait()
    assert found.statuses == {"UNAVAILABLE": 8}
    assert any("UNAVAILABLE" in fault for fault in found.faults)
    assert any("a good request got" in fault for fault in found.faults)


# ---- messages that were thought of ------------------------------------------------------------


@pytest.fixture(scope="module")
def running(places: dict[str, Path]) -> Iterator[dict[str, ScoringServer]]:
    """Servers of the two models, in this process."""
    with ExitStack() as held:
        by_place = {}
        for place in set(places.values()):
            repository = Repository([place], SETTINGS, Scorer.open)
            server = ScoringServer(repository.models, SETTINGS, repository)
            by_place[place] = held.enter_context(server)
        yield {name: by_place[place] for name, place in places.items()}


def asked(server: ScoringServer, path: str, message: bytes, **options: Any) -> hostile.Answer:
    """What a server answers a message, over gRPC or HTTP as its path tells."""
    over = hostile.over_http if path.startswith("/v2") else hostile.over_grpc
    assert server.metrics_port is not None
    ports = Server(None, server.port, server.metrics_port, Path())  # type: ignore[arg-type]
    with closing(over(ports)) as sends:
        return next(sends)(path, message)


def good(name: str, places: dict[str, Path]) -> list[hostile.Sent]:
    return DOORS[name].good(Scorer.open(places[name]))


@pytest.fixture(autouse=True)
def still_good(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test, a server of this process scores to the last bit."""
    yield
    if "running" not in request.fixturenames:
        return
    running, places = (request.getfixturevalue(name) for name in ("running", "places"))
    for name in DOORS:
        one = good(name, places)[0]
        answer = asked(running[name], one.path, one.message)
        assert answer.scores is not None and np.array_equal(answer.scores, one.wanted)


def _ints(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def _typed(change: Callable[[ours.PredictRequest], None]) -> bytes:
    request = ours.PredictRequest.FromString(_SEEN["typed"])
    change(request)
    return request.SerializeToString()


def _sparse(**changes: Any) -> bytes:
    request = theirs.PredictionRequest.FromString(_SEEN["torchrec"])
    for name, value in changes.items():
        into: Any = request if name == "batch_size" else request.id_list_features
        setattr(into, name, value)
    return request.SerializeToString()


def _infer(name: str, shape: Sequence[int], data: bytes = b"", kind: str = "INT64") -> bytes:
    request = oip.ModelInferRequest.FromString(_SEEN["inference"])
    place = [one.name for one in request.inputs].index(name)
    request.inputs[place].CopyFrom(
        oip.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=shape)
    )
    request.raw_input_contents[place] = data
    return request.SerializeToString()


def _matrix(shape: Sequence[int]) -> bytes:
    """A list of ids as one tensor."""
    request = oip.ModelInferRequest.FromString(_SEEN["inference"])
    place = [one.name for one in request.inputs].index("genres.values")
    del request.inputs[place : place + 2], request.raw_input_contents[place : place + 2]
    request.inputs.add(name="genres", datatype="INT64", shape=shape)
    request.raw_input_contents.append(b"")
    return request.SerializeToString()


def _config(text: str) -> bytes:
    config = {"config": oip.ModelRepositoryParameter(string_param=text)}
    return oip.RepositoryModelLoadRequest(model_name=MODEL, parameters=config).SerializeToString()


def _json(name: str, **changes: Any) -> bytes:
    body = json.loads(_SEEN["http"])
    (one,) = (one for one in body["inputs"] if one["name"] == name)
    one.update(changes)
    return json.dumps(body).encode()


def _lengths(name: str, *lengths: int) -> Callable[[ours.PredictRequest], None]:
    def change(request: ours.PredictRequest) -> None:
        request.items[name].lengths = _ints(*lengths)

    return change


_SEEN: dict[str, bytes] = {}  # a good message of each door


@pytest.fixture(scope="module", autouse=True)
def seen(places: dict[str, Path]) -> None:
    _SEEN.update({name: good(name, places)[0].message for name in DOORS})


LARGEST = 2**31 - 1
ODD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "lengths that add up to more than an int32": (
        *(PREDICT, lambda: _typed(_lengths("genres", LARGEST, LARGEST, 2, 4))),
        "add up to 4,294,967,300",
    ),
    "negative lengths": (PREDICT, lambda: _typed(_lengths("tags", 5, -1, 0, 0)), "length of -1"),
    "negative lengths of torchrec": (
        *(SPARSE, lambda: _sparse(lengths=_ints(1, 1, 1, 1, 5, -1, 0, 0)), "length of -1"),
    ),
    "torchrec lengths that overflow": (
        *(SPARSE, lambda: _sparse(lengths=_ints(*[LARGEST] * 8))),
        "this server takes",
    ),
    "a billion rows of torchrec": (SPARSE, lambda: _sparse(batch_size=BILLION), "1,000,000,000"),
    "negative rows of torchrec": (SPARSE, lambda: _sparse(batch_size=-1), "0 or more"),
    "a billion rows without columns": (
        *(INFER, lambda: _infer("user_id", [BILLION, 0])),
        "1,000,000,000 candidates",
    ),
    "a billion empty lists": (INFER, lambda: _matrix([BILLION, 0]), "1,000,000,000 candidates"),
    "more rows than numbers have": (INFER, lambda: _infer("age", [2**62, 0], kind="FP32"), "takes"),
    "a shape whose product overflows": (INFER, lambda: _infer("age", [2**32, 2**32]), "bytes, but"),
    "negative shapes": (INFER, lambda: _infer("age", [-2, -2], b"\0" * 32), "has the shape"),
    "a length beyond int32": (
        *(INFER, lambda: _infer("genres.lengths", [4], np.array([2**63 - 1] * 4).tobytes())),
        "larger than any message",
    ),
    "lengths that overflow": (
        *(INFER, lambda: _infer("genres.lengths", [4], np.array([LARGEST] * 4).tobytes())),
        "add up to 8,589,934,588",
    ),
    "a string that claims 4 GiB": (
        *(INFER, lambda: _infer("city", [4], b"\xff\xff\xff\xff" + b"abc", "BYTES")),
        "has not 4 strings",
    ),
    "strings that are not UTF-8": (
        *(INFER, lambda: _infer("city", [4], b"\1\0\0\0\xff" * 4, "BYTES")),
        "not UTF-8",
    ),
    "a version that is infinite": (
        *(LOAD, lambda: _config('{"version_policy":{"specific":{"versions":[1e999]}}}')),
        "one specific version",
    ),
    "a deep configuration": (LOAD, lambda: _config("[" * 100_000), "one specific version"),
    "a configuration of half a character": (
        *(LOAD, lambda: _config('{"version_policy":{"specific":{"versions":["\\ud800"]}}}')),
        "one specific version",
    ),
    "a billion rows in JSON": (
        *(INFER_JSON, lambda: _json("age", shape=[BILLION, 0], data=[])),
        "1,000,000,000 candidates",
    ),
    "deep JSON": (INFER_JSON, lambda: b'{"inputs":' + b"[" * 200_000, "no JSON"),
    "a deep id": (
        *(INFER_JSON, lambda: _SEEN["http"].replace(b'"7"', b"[" * 900 + b"]" * 900)),
        "a str",
    ),
    "an id that is no string": (
        *(INFER_JSON, lambda: _SEEN["http"].replace(b'"id": "7"', b'"id": NaN')),
        "a str",
    ),
    "deep shapes": (
        *(INFER_JSON, lambda: _json("age", shape=json.loads("[" * 800 + "]" * 800))),
        "a shape of something else",
    ),
    "numbers of 5,000 digits": (
        *(INFER_JSON, lambda: _SEEN["http"].replace(b"31.5", b"1" * 5_000)),
        "no JSON",
    ),
    "numbers of 4,000 digits": (
        *(INFER_JSON, lambda: _SEEN["http"].replace(b"31.5", b"1" * 4_000)),
        "no FP32 can be",
    ),
    "infinity in JSON": (INFER_JSON, lambda: _json("age", data=[math.inf] * 4), "infinite"),
    "NaN as an id": (INFER_JSON, lambda: _json("user_id", data=[math.nan] * 4), "no int64"),
    "half a character": (INFER_JSON, lambda: _json("city", data=["\ud800"] * 4), "not Unicode"),
    "JSON that is not UTF-8": (
        *(INFER_JSON, lambda: _SEEN["http"].replace(b"Basel", b"\xff\xfe")),
        "no JSON",
    ),
    "a path that is not UTF-8": ("/v2/models/%ff%fe/infer", lambda: b"{}", "is not served here"),
    "a version of 5,000 digits": (
        *(
            f"/v2/models/{MODEL}/versions/{'1' * 5_000}/infer",
            lambda: b"{}",
            "model_version",
        ),
    ),
    "a parameter that is deep": (
        *(f"/v2/repository/models/{MODEL}/load",),
        lambda: b'{"parameters":{"version":' + b"[" * 800 + b"]" * 800 + b"}}",
        "neither a number nor a string",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_wrong_is_named(case: str, running: dict[str, ScoringServer]) -> None:
    path, made, said = ODD[case]
    answer = asked(running["torchrec" if path == SPARSE else "typed"], path, made())
    assert answer.status in ("INVALID_ARGUMENT", "400", "404"), answer
    assert said in answer.said and answer.said


def test_nan_in_json_is_a_null(running: dict[str, ScoringServer], places: dict[str, Path]) -> None:
    answer = asked(running["http"], INFER_JSON, _json("age", data=[math.nan] * 4))
    assert answer.status == "200" and answer.scores is not None
    numbers = np.full(4, np.nan, np.float32).tobytes()

    def change(request: ours.PredictRequest) -> None:
        request.items["age"].numbers = numbers

    wanted = asked(running["typed"], PREDICT, _typed(change)).scores
    assert np.array_equal(answer.scores, wanted)


@pytest.mark.parametrize("path", [PREDICT, INFER, INFER_JSON])
def test_names_that_are_given_twice_are_refused(
    path: str, running: dict[str, ScoringServer]
) -> None:
    if path == PREDICT:
        message = _typed(lambda request: request.user["age"].CopyFrom(request.items["age"]))
        said = "both for the user and for the items"
    elif path == INFER:
        request = oip.ModelInferRequest.FromString(_SEEN["inference"])
        request.inputs.append(request.inputs[0])
        request.raw_input_contents.append(request.raw_input_contents[0])
        message, said = request.SerializeToString(), "given twice"
    else:
        body = json.loads(_SEEN["http"])
        body["inputs"].append(body["inputs"][0])
        message, said = json.dumps(body).encode(), "given twice"
    answer = asked(running["typed"], path, message)
    assert answer.status in ("INVALID_ARGUMENT", "400") and said in answer.said


@pytest.mark.slow
def test_many_small_columns_are_answered(running: dict[str, ScoringServer]) -> None:
    column = ours.Column(ids=b"")
    request = ours.PredictRequest(items={f"{i:x}": column for i in range(60_000)})
    answer = asked(running["typed"], PREDICT, request.SerializeToString())
    assert answer.status == "INVALID_ARGUMENT" and "not among the items" in answer.said
    whole = ours.PredictRequest.FromString(_SEEN["typed"])
    for i in range(30_000):
        whole.items[f"{i:x}"].CopyFrom(column)
    assert asked(running["typed"], PREDICT, whole.SerializeToString()).status == "OK"
    tensors = oip.ModelInferRequest()
    for i in range(30_000):
        tensors.inputs.add(name=f"{i:x}", datatype="FP32", shape=[0])
    answer = asked(running["typed"], INFER, tensors.SerializeToString())
    assert answer.status == "INVALID_ARGUMENT" and "is missing" in answer.said


@pytest.mark.parametrize("path", [PREDICT, SPARSE, INFER, INFER_JSON])
def test_a_message_that_is_too_large_is_refused(
    path: str, running: dict[str, ScoringServer]
) -> None:
    answer = asked(running["typed"], path, bytes(SETTINGS.max_message_bytes + 1))
    assert answer.status in ("RESOURCE_EXHAUSTED", "429"), answer
    assert "larger than max" in answer.said or "this server takes 1,048,576" in answer.said


@pytest.mark.slow
def test_a_message_that_unpacks_to_more_than_may_be_sent_is_refused(
    process: Server, places: dict[str, Path]
) -> None:
    before = process.resident
    for times in (2, 20):  # 320 MiB of zeros are 320 kB as gzip
        with (
            grpc.insecure_channel(
                f"{HOST}:{process.port}", [("grpc.max_send_message_length", -1)]
            ) as channel,
            pytest.raises(grpc.RpcError, match="larger than max") as caught,
        ):
            channel.unary_unary(PREDICT)(
                bytes(times << 24), timeout=60, compression=grpc.Compression.Gzip
            )
        assert caught.value.code() == CODE.RESOURCE_EXHAUSTED
    assert process.resident - before < 64 << 20
    _check(process, places)


def test_a_long_fault_is_cut_short(running: dict[str, ScoringServer]) -> None:
    for path, message in (
        (INFER_JSON, _json("age", datatype="x" * 100_000)),
        (INFER, _infer("age", [4], kind="上" * 100_000)),
    ):
        answer = asked(running["typed"], path, message)
        assert answer.status in ("400", "INVALID_ARGUMENT") and 50 < len(answer.said) <= 500


# ---- connections that say little --------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(data))[1:] + struct.pack(">BBI", kind, flags, stream) + data


def headers(stream: int, path: str) -> bytes:
    """The beginning of a gRPC call, whose message is to follow."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "here"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    packed = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(1, 4, stream, packed)


OPENED = PREFACE + frame(4, 0, 0, b"")
HALF_OPEN: dict[str, bytes] = {
    "nothing": b"",
    "half a preface": PREFACE[:9],
    "another protocol": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "no call": OPENED,
    "no message": OPENED + headers(1, PREDICT),
    "half a message": OPENED + headers(1, PREDICT) + frame(0, 0, 1, b"\0\0\0\4\0abc"),
    "a message of 4 GiB": OPENED + headers(1, PREDICT) + frame(0, 0, 1, b"\0\xff\xff\xff\xff"),
    "a frame of 16 MiB": OPENED + b"\xff\xff\xff\0\0\0\0\0\1",
    "headers that are none": OPENED + frame(1, 4, 1, b"\xff" * 40),
    "half of the headers": OPENED + frame(1, 0, 1, headers(1, PREDICT)[9:30]),
}


@pytest.fixture(scope="module")
def process(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(places["typed"], tmp_path_factory.mktemp("served") / "log") as server:
        yield server


def _settles_at(wanted: int, count: Callable[[], int]) -> bool:
    until = time.monotonic() + 20
    while count() > wanted and time.monotonic() < until:
        time.sleep(0.05)
    return count() <= wanted


def _check(server: Server, places: dict[str, Path], name: str = "typed") -> None:
    one = good(name, places)[0]
    with closing(DOORS[name].connected(server)) as sends:
        answer = next(sends)(one.path, one.message)
    assert answer.scores is not None and np.array_equal(answer.scores, one.wanted)


@pytest.mark.parametrize("how", HALF_OPEN)
def test_half_open_connections_stop_nobody_and_leave_nothing(
    how: str, process: Server, places: dict[str, Path]
) -> None:
    _check(process, places)
    before = process.descriptors
    with ExitStack() as held:
        for _ in range(3):  # fewer than calls that are taken at a time
            one = held.enter_context(socket.create_connection((HOST, process.port)))
            one.sendall(HALF_OPEN[how])
        _check(process, places)
    assert _settles_at(before, lambda: process.descriptors)
    _check(process, places)


SOON = ("--connection-s", "0.5", "--grace-s", "1")  # a connection is too old


@pytest.mark.slow
def test_half_open_calls_end_once_their_connection_is_too_old(
    places: dict[str, Path], tmp_path: Path
) -> None:
    with (
        served(
            places["typed"], tmp_path / "log", "--connection-s", "0.5", "--grace-s", "1"
        ) as server,
        socket.create_connection((HOST, server.port)) as one,
    ):
        calls = b"".join(headers(2 * i + 1, PREDICT) for i in range(80))
        one.sendall(OPENED + calls)  # more than are taken at a time
        time.sleep(8)
        _check(server, places)


@pytest.mark.parametrize(
    "said",
    [b"", b"POST", b"POST /v2/repository/index HTTP/1.1\r\nContent-Le"],
    ids=["nothing", "half a line", "half a header"],
)
def test_requests_over_http_that_never_end_leave_nothing(
    said: bytes, process: Server, places: dict[str, Path]
) -> None:
    _check(process, places, "http")
    before = process.descriptors
    with ExitStack() as held:
        for _ in range(http.CONNECTIONS // 2):
            one = held.enter_context(socket.create_connection((HOST, process.http_port)))
            one.sendall(said)
        _check(process, places, "http")
    assert _settles_at(before, lambda: process.descriptors)


def _post(given: bytes, length: str, more: str = "") -> bytes:
    head = f"POST {INFER_JSON} HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n{more}\r\n"
    return head.encode() + given


def _answered(server: ScoringServer, *said: bytes, every_s: float = 0.0) -> bytes:
    """What a server answers somebody who says one thing after another over HTTP."""
    assert server.metrics_port is not None
    with socket.create_connection((HOST, server.metrics_port), timeout=20) as one:
        for part in said:
            one.sendall(part)
            time.sleep(every_s)
        found = b""
        while part := one.recv(1 << 16):
            found += part
    return found


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (_post(b"{}", "1" * 5_000), b"no number of bytes"),
        (_post(b"{}", "-1"), b"no number of bytes"),
        (_post(b"{}", "²"), b"no number of bytes"),
        (_post(b"2\r\n{}\r\n0\r\n\r\n", "2", "Transfer-Encoding: chunked\r\n"), b"send a Content"),
        (_post(b"", ""), b"must be a list"),
    ],
)
def test_lengths_over_http_that_are_none_are_refused(
    said: bytes, told: bytes, running: dict[str, ScoringServer]
) -> None:
    answer = _answered(running["http"], said)
    assert b" 400 " in answer.splitlines()[0] and told in answer


def test_a_body_that_ends_early_is_refused(running: dict[str, ScoringServer]) -> None:
    assert running["http"].metrics_port is not None
    with socket.create_connection((HOST, running["http"].metrics_port), timeout=20) as one:
        one.sendall(_post(b'{"inputs": [', "1000"))
        one.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: one.recv(1 << 16), b""))
    assert b" 400 " in answer.splitlines()[0] and b"ends after 12 of 1,000 bytes" in answer


@pytest.mark.slow
def test_a_body_that_comes_too_slowly_is_refused(
    running: dict[str, ScoringServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "WHOLE_S", 0.5)
    began = time.monotonic()
    answer = _answered(running["http"], _post(b"{", "1000"), *[b" "] * 15, every_s=0.1)
    assert b" 408 " in answer.splitlines()[0] and b"did not come" in answer
    assert time.monotonic() - began < 10


def test_a_refused_body_that_is_still_sent_costs_no_answer(
    running: dict[str, ScoringServer],
) -> None:
    size = 8 * SETTINGS.max_message_bytes
    answer = _answered(running["http"], _post(bytes(size), str(size)))
    assert b" 429 " in answer.splitlines()[0]


def test_clients_that_never_read_their_answers_stop_nobody(
    process: Server, places: dict[str, Path]
) -> None:
    before = process.descriptors
    message = json.dumps({"inputs": []}).encode()
    with ExitStack() as held:
        for _ in range(http.CONNECTIONS // 2):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            held.enter_context(one).connect((HOST, process.http_port))
            one.sendall(_post(message, str(len(message))))
        calls = OPENED + b"".join(
            headers(2 * i + 1, f"/{inference.SERVICE}/ServerMetadata")
            + frame(0, 1, 2 * i + 1, b"\0\0\0\0\0")
            for i in range(20)
        )
        deaf = held.enter_context(socket.create_connection((HOST, process.port)))
        deaf.sendall(calls)
        for name in ("http", "typed"):
            _check(process, places, name)
    assert _settles_at(before, lambda: process.descriptors)


@pytest.mark.slow
def test_a_tls_hello_that_never_ends_stops_nobody(tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "pem"
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(file)
    settings = replace(SETTINGS, tls_cert=file, tls_key=file)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with ScoringServer(Models(), settings) as server, ExitStack() as held:
        assert server.metrics_port is not None
        for port in (server.port, server.metrics_port):
            for said in (b"", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\xff\xff" + bytes(99)):
                one = held.enter_context(socket.create_connection((HOST, port)))
                one.sendall(said)
        ask = f"GET /v2/health/live HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        with (
            socket.create_connection((HOST, server.metrics_port), timeout=20) as plain,
            trusting.wrap_socket(plain, server_hostname=HOST) as talking,
        ):
            talking.sendall(ask)
            assert b" 200 " in talking.recv(1 << 16)
        pem = (tmp_path / "ca").write_bytes(authority.cert_pem.bytes()) and authority.cert_pem
        shown = grpc.ssl_channel_credentials(pem.bytes())
        with grpc.secure_channel(f"{HOST}:{server.port}", shown) as channel:
            live = channel.unary_unary(f"/{inference.SERVICE}/ServerLive")(b"", timeout=20)
        assert oip.ServerLiveResponse.FromString(live).live


# ---- a disk without room ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_whose_disk_is_full_scores(places: dict[str, Path], tmp_path: Path) -> None:
    """A disk of 64 KiB for the cache of known ids, mounted for one process alone."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    cache = tmp_path / "cache"
    cache.mkdir()
    full = f"mount -t tmpfs -o size=64k none {cache} && head -c 65536 /dev/zero > {cache}/full"
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*alone, full], capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    before = [*alone, f'{full} && export XDG_CACHE_HOME={cache} && exec "$@"', "sh"]
    log = tmp_path / "log"
    with served(places["typed"], log, before=before) as server:
        for name in ("typed", "inference", "http"):
            _check(server, places, name)
    assert "No space left on device" in log.read_text()
