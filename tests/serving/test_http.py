"""JSON and metrics over HTTP, for people with curl."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families
from toy_scorer import ToyScorer, save_small

from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.client import Client
from embedcomp.serving.doors import http
from embedcomp.serving.errors import CallFailed, CannotListen
from embedcomp.serving.models import Models
from embedcomp.serving.repository import Repository
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.support.metrics import SCORES, by_score

pytestmark = pytest.mark.server
HOST, ROWS = "127.0.0.1", 3
SETTINGS = ServerSettings(port=0, metrics_port=0, max_rows=100, max_message_bytes=1 << 20)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_small(folder / "clicks", 1)
    save_small(folder / "clicks", 2)
    return folder


@pytest.fixture
def server(home: Path) -> Iterator[ScoringServer]:
    repository = Repository([home], SETTINGS, Scorer.open)
    with ScoringServer(repository.models, SETTINGS, repository) as running:
        yield running


def asked(
    server: ScoringServer, path: str, body: Any = None, *, token: str = "", data: bytes = b""
) -> tuple[int, Any]:
    """Status and what was said; a body makes it a POST."""
    given = data or (None if body is None else json.dumps(body).encode())
    request = urllib.request.Request(f"http://{HOST}:{server.metrics_port}{path}", given)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, said = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, said = error.code, error.read()
    return status, json.loads(said) if said[:1] in (b"{", b"[") else said.decode()


def body(columns: dict[str, pa.Array], **changes: Any) -> dict[str, Any]:
    """Rows as JSON; nulls cannot be sent."""
    inputs = []
    for name, column in columns.items():
        inner = column.type.value_type if pa.types.is_list(column.type) else column.type
        kind = {pa.string(): "BYTES", pa.float32(): "FP32"}.get(inner, "INT64")
        parts = [(name, kind, column)]
        if pa.types.is_list(column.type):
            parts = [(f"{name}.values", kind, column.flatten())]
            parts.append((f"{name}.lengths", "INT64", column.value_lengths()))
        for called, datatype, values in parts:
            data = values.to_pylist()
            shape = [len(data)]
            inputs.append({"name": called, "datatype": datatype, "shape": shape, "data": data})
    return {"id": "7", "inputs": inputs} | changes


@pytest.fixture
def rows() -> dict[str, pa.Array]:
    return {
        "user_id": pa.array([10, 20, 2**60]),
        "city": pa.array(["Zürich", "", "上海"]),
        "genres": pa.array([[1, 2], [], [4]]),
        "tags": pa.array([["a"], ["b", "b"], []], pa.list_(pa.string())),
        "age": pa.array([31.5, 0.1, -7.25], pa.float32()),
        "price": pa.array([7.0, 1e-3, 0.0], pa.float32()),
    }


def wanted(home: Path, version: int, columns: dict[str, pa.Array]) -> list[float]:
    found = Scorer.open(home / "clicks" / str(version)).score(pa.RecordBatch.from_pydict(columns))
    assert len(np.unique(found)) == ROWS
    scores: list[float] = found.tolist()
    return scores


def test_scores_are_those_in_process_to_the_last_bit(
    server: ScoringServer, home: Path, rows: dict[str, pa.Array]
) -> None:
    for asks in ({"parameters": {"version": 1}}, {}):  # so that both are open
        assert asked(server, "/v2/repository/models/clicks/load", asks) == (200, {})
    for path, version in (("", 2), ("/versions/1", 1), ("/versions/2", 2)):
        status, said = asked(server, f"/v2/models/clicks{path}/infer", body(rows))
        assert status == 200, said
        assert said == {
            "model_name": "clicks",
            "model_version": str(version),
            "id": "7",
            "outputs": [
                {
                    "name": "score",
                    "datatype": "FP32",
                    "shape": [ROWS],
                    "data": wanted(home, version, rows),
                }
            ],
        }


@pytest.mark.slow
def test_curl_gets_them_too(server: ScoringServer, home: Path, rows: dict[str, pa.Array]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    where = f"http://{HOST}:{server.metrics_port}/v2/models/clicks/infer"
    command = ["curl", "-s", where, "-d", json.dumps(body(rows))]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout)["outputs"][0]["data"] == wanted(home, 2, rows)


@pytest.mark.slow
def test_columns_may_be_nested(
    server: ScoringServer, home: Path, rows: dict[str, pa.Array]
) -> None:
    nested = body(rows)
    for one in nested["inputs"]:
        if "." not in one["name"]:
            one["shape"], one["data"] = [ROWS, 1], [[value] for value in one["data"]]
    status, said = asked(server, "/v2/models/clicks/infer", nested)
    assert status == 200 and said["outputs"][0]["data"] == wanted(home, 2, rows)


@pytest.mark.slow
def test_what_a_server_and_a_model_are(server: ScoringServer) -> None:
    assert asked(server, "/v2/health/live") == (200, {"live": True})
    assert asked(server, "/v2/health/ready") == (200, {"ready": True})
    assert asked(server, "/v2")[1]["name"] == "embedcomp"
    assert asked(server, "/v2/models/clicks/ready")[0] == 200
    _, told = asked(server, "/v2/models/clicks")
    assert told["versions"] == ["2"] and told["outputs"][0]["name"] == "score"
    assert {"name": "city", "datatype": "BYTES", "shape": ["-1"]} in told["inputs"]


@pytest.mark.slow
def test_versions_are_loaded_and_unloaded(server: ScoringServer) -> None:
    load = "/v2/repository/models/clicks/load"
    for version in (1, "2", 1):
        assert asked(server, load, {"parameters": {"version": version}}) == (200, {})
        _, index = asked(server, "/v2/repository/index", {})
        states = {one["version"]: one["state"] for one in index}
        assert states[str(version)] == "READY"
    assert asked(server, "/v2/repository/models/clicks/unload", {}) == (200, {})
    assert asked(server, "/v2/health/ready")[0] == 503
    assert asked(server, "/v2/health/live")[0] == 200
    assert asked(server, "/v2/models/clicks/ready")[0] == 404
    assert asked(server, "/v2/repository/models/other/load", {})[0] == 404
    assert asked(server, load, {"parameters": {"version": [1]}})[0] == 400
    assert asked(server, load, {"parameters": [1]})[0] == 400
    assert asked(server, load, {"parameters": {"label": "canary"}})[0] == 400
    assert asked(server, load, {}) == (200, {})


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": None}, "'inputs': must be a list"),
        ({"inputs": [1]}, "'inputs': must be a list of objects"),
        ({"inputs": []}, "is missing"),
        ({"inputs": [{"name": 1}]}, "'name': of an entry must be there, and a str"),
        ({"outputs": [{"name": "logits"}]}, "'logits': is no output"),
        ({"outputs": {}}, "'outputs': must be a list"),
    ],
)
def test_requests_that_do_not_hold_together_are_bad_requests(
    server: ScoringServer, rows: dict[str, pa.Array], change: dict[str, Any], said: str
) -> None:
    status, told = asked(server, "/v2/models/clicks/infer", body(rows, **change))
    assert status == 400 and said in told["error"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("age", {"datatype": "FP128"}, "is of 'FP128'"),
        ("age", {"shape": [2]}, "has 3 values"),
        ("age", {"shape": []}, "has the shape []"),
        ("age", {"shape": [True]}, "a shape of something else"),
        ("age", {"shape": [-3]}, "has the shape"),
        ("age", {"data": [1, 2, "x"]}, "something else than numbers"),
        ("age", {"data": [1, 2, None]}, "something else than numbers"),
        ("age", {"data": [1, 2, 1e300]}, "infinite"),
        ("user_id", {"data": [1, 2, 2**64]}, "no INT64 can be"),
        ("user_id", {"data": [1, 2, 0.5]}, "no int64"),
        ("user_id", {"data": [1, 2, 10**400]}, "user_id"),
        ("city", {"data": [1, 2, 3]}, "something else than strings"),
        ("genres.lengths", {"data": [2, 0, 2]}, "add up to 4"),
    ],
)
def test_tensors_that_do_not_fit_are_bad_requests(
    server: ScoringServer,
    rows: dict[str, pa.Array],
    name: str,
    change: dict[str, Any],
    said: str,
) -> None:
    sent = body(rows)
    (one,) = (one for one in sent["inputs"] if one["name"] == name)
    one.update(change)
    status, told = asked(server, "/v2/models/clicks/infer", sent)
    assert status == 400 and said in told["error"], told


def test_other_paths_and_bodies_are_refused(server: ScoringServer) -> None:
    infer = "/v2/models/clicks/infer"
    assert asked(server, "/")[0] == 404
    assert asked(server, infer)[0] == 404  # it has to be a POST
    assert asked(server, "/v2/models/other/infer", {"inputs": []})[0] == 404
    assert asked(server, "/v2/models/clicks/versions/latest")[0] == 400
    for data in (b"{", b"[]", b"7", b"[" * 100_000, b"\xff"):
        assert asked(server, infer, data=data)[0] == 400


def test_a_body_above_the_limit_is_not_read(server: ScoringServer) -> None:
    assert server.metrics_port is not None
    with socket.create_connection((HOST, server.metrics_port)) as one:
        head = f"POST /v2/models/clicks/infer HTTP/1.1\r\nContent-Length: {1 << 40}\r\n\r\n"
        one.sendall(head.encode())
        answer = one.recv(1000)
    assert b"429" in answer.splitlines()[0]


@pytest.mark.slow
def test_connections_are_bounded_and_half_open_ones_do_no_harm(server: ScoringServer) -> None:
    assert server.metrics_port is not None
    where = HOST, server.metrics_port
    held = [socket.create_connection(where) for _ in range(http.CONNECTIONS)]
    for one in held:
        one.sendall(b"GET /v2/health/l")
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        for _ in range(20):  # until all of them were taken
            asked(server, "/v2/health/live")
    for one in held:
        one.close()
    for _ in range(1000):
        try:
            assert asked(server, "/v2/health/live")[0] == 200
            return
        except (urllib.error.URLError, ConnectionError):
            continue
    pytest.fail("connections that were closed are counted on")


def _metrics(server: ScoringServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    _, text = asked(server, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
def test_metrics_tell_calls_and_versions(
    server: ScoringServer, home: Path, rows: dict[str, pa.Array]
) -> None:
    batch = pa.RecordBatch.from_pydict(rows)
    with Client(f"{HOST}:{server.port}") as client:
        scores = [client.predict(batch) for _ in range(2)]
        with pytest.raises(CallFailed):
            client.predict(batch.drop_columns(["age"]))
    asked(server, "/v2/models/clicks/infer", body(rows))
    found, scorer = _metrics(server), Scorer.open(home / "clicks" / "2")

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert value("embedcomp_requests_total", door="typed", code="OK") == 3  # one of Metadata
    assert value("embedcomp_requests_total", door="typed", code="INVALID_ARGUMENT") == 1
    assert value("embedcomp_requests_total", door="http", code="OK") == 1
    assert value("embedcomp_request_duration_seconds_count", door="typed") == 4
    of = {"model": "clicks", "version": "2"}
    assert value("embedcomp_version_ready", **of) == value("embedcomp_version_current", **of) == 1
    name = "embedcomp_scored_rows_total"
    by = {end: value(name, **of, score=f"{end:g}") for end in SCORES}
    assert list(by.values()) == (3 * by_score(scores[0])).tolist() and sum(by.values()) == 3 * ROWS
    total = 3 * np.sum(scores[0], dtype=np.float64)
    assert value("embedcomp_scores_sum_total", **of) == pytest.approx(total, rel=1e-6)
    for one in scorer.features.ids:
        column = rows[one.name].flatten() if one.multi_valued else rows[one.name]
        unknown = (one.vocabulary.encode(column) == one.vocabulary.unknown_row).sum()
        assert value("embedcomp_ids_total", **of, feature=one.name) == 3 * len(column)
        assert value("embedcomp_unknown_ids_total", **of, feature=one.name) == 3 * unknown
    assert value("embedcomp_queue_seconds_count") == value("embedcomp_batch_rows_count") == 4
    assert value("embedcomp_batch_rows_sum") == 4 * ROWS and value("embedcomp_queued_rows") == 0
    assert value("embedcomp_resident_bytes", **of) == sum(scorer.resident.values()) > 0


@pytest.mark.slow
def test_a_request_that_finds_no_room_is_told_when_to_come_back(
    server: ScoringServer, rows: dict[str, pa.Array]
) -> None:
    scoring = server._scoring
    free, most = scoring._free, scoring._most_waiting
    scoring._free, scoring._most_waiting = 0, 0  # every thread scores, and nobody may wait
    try:
        given = json.dumps(body(rows)).encode()
        path = f"http://{HOST}:{server.metrics_port}/v2/models/clicks/infer"
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(urllib.request.Request(path, given), timeout=20)
    finally:
        scoring._free, scoring._most_waiting = free, most
    assert found.value.code == 429 and int(found.value.headers["Retry-After"]) == 1
    assert "come back later" in json.loads(found.value.read())["error"]


@pytest.mark.parametrize("opened", [(), ("health",), ("metrics",)])
def test_a_token_is_needed_unless_something_is_opened(
    opened: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text("secret")
    settings = ServerSettings(port=0, metrics_port=0, token_file=file, without_token=opened)
    with ScoringServer(Models.of(settings, ToyScorer()), settings) as server:
        for path, what in (("/metrics", "metrics"), ("/v2/health/live", "health"), ("/v2", "")):
            assert asked(server, path, token="secret")[0] == 200
            for token in ("", "other"):
                assert asked(server, path, token=token)[0] == (200 if what in opened else 401)


def test_http_is_over_tls_where_grpc_is(tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "pem"
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(file)
    settings = ServerSettings(port=0, metrics_port=0, tls_cert=file, tls_key=file)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with ScoringServer(Models.of(settings, ToyScorer()), settings) as server:
        assert server.metrics_port is not None
        where = f"https://{HOST}:{server.metrics_port}/v2/health/live"
        with urllib.request.urlopen(where, timeout=20, context=trusting) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(where, timeout=20)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(where.replace("https", "http"), timeout=20)
        other, renewed = trustme.CA(), ssl.create_default_context()
        other.configure_trust(renewed)
        other.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(file)
        os.utime(file, (0, 0))
        with urllib.request.urlopen(where, timeout=20, context=renewed) as answer:
            assert answer.status == 200


def test_clients_over_http_must_show_what_the_server_trusts(tmp_path: Path) -> None:
    ours, theirs, pem, ca = trustme.CA(), trustme.CA(), tmp_path / "pem", tmp_path / "ca"
    ours.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(pem)
    theirs.cert_pem.write_to_path(ca)
    settings = ServerSettings(port=0, metrics_port=0, tls_cert=pem, tls_key=pem, tls_client_ca=ca)
    with ScoringServer(Models.of(settings, ToyScorer()), settings) as server:
        where = f"https://{HOST}:{server.metrics_port}/v2/health/live"
        for shown, let_in in ((theirs, True), (ours, False), (None, False)):
            context = ssl.create_default_context()
            ours.configure_trust(context)
            if shown is not None:
                shown.issue_cert("client").configure_cert(context)
            try:
                with urllib.request.urlopen(where, timeout=20, context=context) as answer:
                    assert let_in and answer.status == 200
            except OSError:  # what ssl and urllib raise
                assert not let_in


@pytest.mark.slow
def test_readiness_ends_before_the_server_does(server: ScoringServer) -> None:
    assert asked(server, "/v2/health/ready")[0] == 200
    server._models.draining = True
    assert asked(server, "/v2/health/ready")[0] == 503
    assert asked(server, "/v2/health/live")[0] == 200


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(server: ScoringServer) -> None:
    settings = ServerSettings(port=0, metrics_port=server.metrics_port)
    with pytest.raises(CannotListen, match=f"{HOST}:{server.metrics_port}"):
        ScoringServer(Models.of(settings, ToyScorer()), settings)


def test_without_a_port_there_is_no_http(scorer: ToyScorer) -> None:
    settings = ServerSettings(port=0)
    with ScoringServer(Models.of(settings, scorer), settings) as server:
        assert server.metrics_port is None
