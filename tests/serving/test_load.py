from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier, Lock, Thread
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
import trustme
from test_predict import SCHEMA, columns_of_log, write_log
from toy_scorer import FEATURES, ToyScorer

from embedcomp.cli import main
from embedcomp.errors import BadLog, BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.serving import load_report, prepared
from embedcomp.serving.convert import from_request
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.errors import CallFailed, Unreachable
from embedcomp.serving.latency import Latencies
from embedcomp.serving.load import NOT_SENT, load, scheduled
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import LoadSettings, ServerSettings
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

STALL_S = 1.0
ROWS = 230
SIDES = {"user": wire.Feature.SIDE_USER, "item": wire.Feature.SIDE_ITEM}
SERVED = wire.MetadataResponse(
    model="toy",
    version=7,
    max_rows=100,
    features=[
        wire.Feature(name=one.name, side=SIDES[one.side])
        for one in (*FEATURES.ids, *FEATURES.dense)
    ],
)


class Toy:
    """A server whose calls do what a test wants, by their number; no score is ever read."""

    def __init__(self, act: Callable[[int, grpc.ServicerContext], None] = lambda n, c: None):
        self.requests: list[bytes] = []
        self._act, self._lock = act, Lock()
        self._in_flight = self.most_in_flight = 0
        methods = {"Predict": self.predict, "Metadata": lambda *_: SERVED.SerializeToString()}
        found = {name: grpc.unary_unary_rpc_method_handler(of) for name, of in methods.items()}
        self.grpc = grpc.server(ThreadPoolExecutor(64))
        self.grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, found)])
        self.target = f"127.0.0.1:{self.grpc.add_insecure_port('127.0.0.1:0')}"
        self.grpc.start()

    def predict(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            number = len(self.requests)
            self.requests.append(data)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            self._act(number, context)
        finally:
            with self._lock:
                self._in_flight -= 1
        return b""


@pytest.fixture
def serving() -> Iterator[Callable[..., Toy]]:
    """Starts toy servers."""
    started: list[Toy] = []

    def start(*arguments: Any) -> Toy:
        started.append(Toy(*arguments))
        return started[-1]

    yield start
    for toy in started:
        toy.grpc.stop(None).wait()


@pytest.fixture
def log(tmp_path: Path) -> ClickLog:
    return write_log(tmp_path, columns_of_log(ROWS))


def settings(**given: Any) -> LoadSettings:
    """Settings of a short run in which every call counts."""
    short = {"seconds": 1.0, "warm_up_s": 0.0, "connections": 1, "rows": 3, "timeout_s": 30.0}
    return LoadSettings(**short | given)


def run_of(target: str, log: ClickLog, **given: Any) -> dict[str, Any]:
    (run,) = load(target, log, settings(**given))["runs"]
    return run


@pytest.mark.slow
@pytest.mark.server
def test_every_call_of_a_rate_is_sent_and_counted(
    serving: Callable[..., Toy], log: ClickLog
) -> None:
    toy = serving()
    found = load(toy.target, log, settings(rate=(40.0, 80.0), warm_up_s=0.5))
    assert [run["rate"] for run in found["runs"]] == [40, 80]
    assert [run["scheduled"] for run in found["runs"]] == [40, 80]
    assert len(toy.requests) == 1 + 20 + 40 + 40 + 80, "the first call, warm-ups and runs"
    for run in found["runs"]:
        assert run["scheduled"] == run["sent"] == run["answered"] and run["failed"] == {}
        assert run["rows_per_second"] == 3 * run["calls_per_second"] > 0
        assert list(run["latency_ms"]) == ["p50", "p90", "p99", "p99.9", "max"]
        assert sorted(run["latency_ms"].values()) == list(run["latency_ms"].values())
    assert (found["model"], found["version"], found["settings"]["rows"]) == ("toy", 7, 3)
    assert len(set(toy.requests)) > 60, "requests differ"


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("concurrency", [1, 40])
def test_calls_that_come_while_a_server_stalls_have_waited(
    serving: Callable[..., Toy], log: ClickLog, concurrency: int
) -> None:
    whole = Lock()

    def stall_once(number: int, context: grpc.ServicerContext) -> None:
        with whole:
            time.sleep(STALL_S if number == 10 else 0)

    run = run_of(
        serving(stall_once).target, log, rate=(40.0,), seconds=2.0, concurrency=concurrency
    )
    # Of 80 calls about 40 come in the stall of a second, a tenth of all in its first fifth.
    assert run["answered"] == 80
    assert run["latency_ms"]["max"] > 1000 * STALL_S * 0.9
    assert run["latency_ms"]["p90"] > 1000 * STALL_S * 0.5
    assert concurrency > 1 or run["late_ms"]["p90"] > 1000 * STALL_S * 0.5


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("given", [{}, {"rate": (200.0,)}])
def test_no_more_calls_are_in_flight_than_is_said(
    serving: Callable[..., Toy], log: ClickLog, given: dict[str, Any]
) -> None:
    toy = serving(lambda number, context: time.sleep(0.02))
    run = run_of(toy.target, log, concurrency=3, **given)
    assert toy.most_in_flight == 3
    assert run["scheduled"] == run["answered"] > 0


@pytest.mark.slow
@pytest.mark.server
def test_a_closed_loop_keeps_its_calls_in_flight(
    serving: Callable[..., Toy], log: ClickLog
) -> None:
    together = Barrier(5)

    def wait_for_others(number: int, context: grpc.ServicerContext) -> None:
        if 0 < number <= 5:
            together.wait(30)

    run = run_of(serving(wait_for_others).target, log, concurrency=5)
    assert run["answered"] >= 5 and run["rate"] is None


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("given", [{"concurrency": 2}, {"rate": (60.0,)}])
def test_refused_calls_are_counted_and_timed_by_themselves(
    serving: Callable[..., Toy], log: ClickLog, given: dict[str, Any]
) -> None:
    def refuse_some(number: int, context: grpc.ServicerContext) -> None:
        time.sleep(0.02 if number % 3 else 0.05)
        if number % 3 == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    run = run_of(serving(refuse_some).target, log, **given)
    refused = run["failed"]["RESOURCE_EXHAUSTED"]
    assert refused > 0 and run["answered"] + refused == run["scheduled"] == run["sent"]
    assert run["latency_ms"]["p50"] > 19
    assert run["failed_ms"]["RESOURCE_EXHAUSTED"]["p50"] > 49


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("given", [{"concurrency": 2}, {"rate": (60.0,)}])
def test_a_server_that_goes_away_leaves_failed_calls_and_an_end(
    serving: Callable[..., Toy], log: ClickLog, given: dict[str, Any]
) -> None:
    def die(number: int, context: grpc.ServicerContext) -> None:
        if number == 20:
            Thread(target=toy.grpc.stop, args=(None,)).start()

    toy = serving(die)
    run = run_of(toy.target, log, seconds=2.0, **given)
    failed = sum(run["failed"].values())
    assert run["failed"]["UNAVAILABLE"] > 0 and run["answered"] > 10
    assert run["answered"] + failed == run["scheduled"] == run["sent"]


@pytest.mark.slow
@pytest.mark.server
def test_calls_that_cannot_be_sent_in_time_have_failed(
    serving: Callable[..., Toy], log: ClickLog
) -> None:
    toy = serving(lambda number, context: time.sleep(0.5 if number else 0))
    run = run_of(toy.target, log, rate=(50.0,), concurrency=1, timeout_s=0.2)
    assert run["failed"].keys() >= {"DEADLINE_EXCEEDED", NOT_SENT}
    assert sum(run["failed"].values()) + run["answered"] == run["scheduled"] == 50
    assert run["sent"] == 50 - run["failed"][NOT_SENT]
    assert run["failed_ms"][NOT_SENT]["p50"] > 200


def test_calls_come_by_chance_and_as_many_as_the_rate_makes() -> None:
    given = settings(rate=(1000.0,), seconds=10.0, warm_up_s=2.0)
    times = scheduled(1000.0, given)
    assert len(times) == 12_000 and (np.diff(times) >= 0).all()
    assert (times < 2).sum() == 2000 and times.max() < 12
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "as between events of chance"
    assert (times == scheduled(1000.0, given)).all()


def test_percentiles_are_those_of_all_times() -> None:
    rng = np.random.default_rng(0)
    times = rng.lognormal(-6, 2, 20_000)
    halves = Latencies(), Latencies()
    for place, one in enumerate(times):
        halves[place % 2].add(one)
    halves[0].merge(halves[1])
    found = halves[0].summary()
    for name in ("50", "90", "99", "99.9"):
        exact = 1000 * np.percentile(times, float(name), method="inverted_cdf")
        assert found[f"p{name}"] == pytest.approx(exact, rel=0.005)
    assert found["max"] == 1000 * times.max()
    assert Latencies().summary() is None


def test_one_time_is_every_percentile() -> None:
    one = Latencies()
    one.add(0.25)
    assert one.summary() == pytest.approx(dict.fromkeys(one.summary(), 250.0), rel=0.005)
    assert one.percentile(99) <= one.max


def parsed(request: bytes) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    return from_request(wire.PredictRequest.FromString(request), FEATURES.names)


def rows_of(log: ClickLog, names: list[str]) -> list[dict[str, Any]]:
    batches = [batch for piece in log.pieces("test") for batch in log.read(piece)]
    return pa.Table.from_batches(batches).select(names).to_pylist()


@pytest.mark.parametrize(("rows", "many"), [(1, 230), (100, 3), (230, 1)])
def test_requests_are_the_rows_of_the_log_in_their_order(
    log: ClickLog, rows: int, many: int
) -> None:
    served = wire.MetadataResponse()
    served.CopyFrom(SERVED)
    served.max_rows = 1000
    made = prepared.prepared(served, "here", log, settings(rows=rows))
    names = list(FEATURES.names)
    found = [row for one in made.requests for row in parsed(one)[0].select(names).to_pylist()]
    assert len(made.requests) == many and len(set(made.requests)) > many * 0.9
    assert found[:ROWS] == rows_of(log, names)


@pytest.mark.parametrize(("candidates", "size"), [(1, ROWS), (60, ROWS), (60, 7), (60, 1)])
def test_a_user_has_candidates_and_a_small_log_is_read_again(
    tmp_path: Path, candidates: int, size: int
) -> None:
    log = write_log(tmp_path, columns_of_log(size))
    given = settings(rows=None, user_candidates=candidates)
    made = prepared.prepared(SERVED, "here", log, given)
    users, items = ["user_id", "city", "age"], ["genres", "tags", "price"]
    assert len(made.requests) == made.log_rows == size
    for number, request in enumerate(made.requests):
        found, user = parsed(request)
        places = (number * candidates + np.arange(candidates)) % size
        assert user is not None and set(found.schema.names) == set(items)
        assert user.select(users).to_pylist() == [rows_of(log, users)[number]]
        of_log = rows_of(log, items)
        assert found.select(items).to_pylist() == [of_log[place] for place in places]


def test_requests_take_bounded_memory(log: ClickLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MOST_BYTES", 3000)
    made = prepared.prepared(SERVED, "here", log, settings(rows=10))
    assert 1 < len(made.requests) < 23 and sum(map(len, made.requests)) <= 3000
    monkeypatch.setattr(prepared, "MOST_BYTES", 1)
    assert len(prepared.prepared(SERVED, "here", log, settings(rows=10)).requests) == 1


@pytest.mark.parametrize("sides", [0, 6])
def test_a_model_without_both_sides_has_no_user_and_candidates(log: ClickLog, sides: int) -> None:
    served = wire.MetadataResponse(model="toy", features=SERVED.features)
    for place, one in enumerate(served.features):
        one.side = SIDES["user" if place < sides else "item"]
    with pytest.raises(BadSettings, match=rf"^{sides} of the 6 features.*give rows instead"):
        prepared.prepared(served, "here", log, settings(rows=None, user_candidates=5))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rate": (0.0,)}, r"^rate is 0, but must be more than 0"),
        ({"rate": (10.0, -1.0)}, r"^rate is -1, but"),
        ({"rate": (float("nan"),)}, r"^rate is nan, but"),
        ({"rate": (float("inf"),)}, r"^rate is inf, but"),
        ({"rate": (0.1,)}, r"^rate is 0.1, which makes 0.1 calls in 1 seconds"),
        ({"rate": (50_000.0,), "seconds": 1000.0}, r"makes 50,000,000.0 calls.*at|change the rate"),
        ({"seconds": 0}, r"^seconds is 0, but must be more than 0"),
        ({"timeout_s": -1}, r"^timeout_s is -1, but"),
        ({"concurrency": 0}, r"^concurrency is 0, but must be 1 or more"),
        ({"concurrency": 5000}, r"^concurrency is 5,000, but must be at most 4,096"),
        ({"rows": 0}, r"^rows is 0, but"),
        ({"rows": None, "user_candidates": 0}, r"^user_candidates is 0, but"),
        ({"rows": 3, "user_candidates": 3}, r"^rows and user_candidates both"),
        ({"connections": 0}, r"^connections is 0, but"),
        ({"warm_up_s": -1}, r"^warm_up_s is -1, but"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadSettings, match=told):
        settings(**given)


@pytest.mark.slow
@pytest.mark.server
def test_mistakes_are_told_before_the_run(target: str, tmp_path: Path) -> None:
    good, bad, empty, wrong = (tmp_path / name for name in ("good", "bad", "empty", "wrong"))
    for folder in (good, bad, empty, wrong):
        folder.mkdir()
    log = write_log(good, columns_of_log())
    with pytest.raises(Unreachable, match=r"no server answers at 127\.0\.0\.1:1 "):
        load("127.0.0.1:1", log, settings())
    with pytest.raises(BadLog, match=r"lacks 1 of the 6 features .*: tags;"):
        lacking = write_log(bad, columns_of_log(), SCHEMA.replace("tags = {}", ""))
        load(target, lacking, settings())
    with pytest.raises(BadLog, match="is empty"):
        load(target, write_log(empty, columns_of_log(0)), settings())
    with pytest.raises(BadLog, match="has no split 'other'"):
        load(target, log, settings(split="other"))
    for name, given in (("rows", {"rows": 101}), ("user", {"rows": None, "user_candidates": 101})):
        with pytest.raises(BadSettings, match=rf"^{name}.* is 101, but the server takes 100"):
            load(target, log, settings(**given))
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT: feature 'city'"):
        changed = columns_of_log() | {"city": pa.array(range(ROWS))}
        load(target, write_log(wrong, changed), settings())


@pytest.mark.slow
@pytest.mark.server
def test_a_real_server_answers_what_is_sent(target: str, log: ClickLog) -> None:
    for given in ({"rows": 100}, {"rows": None, "user_candidates": 100}, {"rate": (30.0,)}):
        run = run_of(target, log, concurrency=8, **given)
        assert run["answered"] == run["scheduled"] > 0 and run["failed"] == {}


def test_a_load_takes_no_more_packages_than_serving() -> None:
    needed = "embedcomp.client, embedcomp.serving.load, embedcomp.serving.load_report"
    code = f"import sys, {needed}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    names = {name.split(".")[0] for name in found.stdout.split()}
    assert not names & {"torch", "sklearn", "scipy", "ray", "matplotlib", "bokeh"}


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["embedcomp", "load", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


@pytest.mark.slow
@pytest.mark.server
def test_the_command_over_tls_and_with_a_token_writes_all_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority, files = trustme.CA(), {n: tmp_path / n for n in ("ca", "cert", "key", "token")}
    made = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(files["ca"])
    made.private_key_pem.write_to_path(files["key"])
    made.cert_chain_pems[0].write_to_path(files["cert"])
    files["token"].write_text("secret\n")
    log = write_log(tmp_path, columns_of_log())
    over = {"tls_cert": files["cert"], "tls_key": files["key"], "tls_client_ca": files["ca"]}
    served = ServerSettings(port=0, token_file=files["token"], **over)
    with ScoringServer(Models.of(served, ToyScorer()), served) as server:
        words = ["--target", f"127.0.0.1:{server.port}", "--log", log.path, "--seconds", "0.5"]
        words += ["--rate", "20", "--rate", "30,40", "--user-candidates", "4", "--warm-up-s", "0"]
        words += ["--json", tmp_path / "found.json", "--out", tmp_path / "out"]
        mine = ["--tls-ca", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"]]
        assert command(monkeypatch, *words, *mine) == 2
        assert "UNAUTHENTICATED" in capsys.readouterr().err
        assert command(monkeypatch, *words, *mine, "--token-file", files["token"]) == 0
    told = capsys.readouterr().out
    assert "toy 7 at" in told and "p99.9" in told and "Poisson" in told
    found = json.loads((tmp_path / "found.json").read_text())
    assert [run["answered"] for run in found["runs"]] == [10, 15, 20]
    assert "secret" not in json.dumps(found)
    table = (tmp_path / "out" / "load.md").read_text()
    assert table.count("\n| ") == 2 + 3 and "4 candidates a call" in table
    assert (tmp_path / "out" / "load.png").read_bytes().startswith(b"\x89PNG")
    assert "p99.9" in (tmp_path / "out" / "load.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rate", "0"], "error: rate is 0, but must be more than 0"),
        (["--rate", "many"], "error: load: rate"),
        (["--tls-key", "key"], "certificate and its key go together"),
        (["--token-file", "nowhere"], "nowhere cannot be read"),
        ([], "error: no server answers at 127.0.0.1:1 "),
    ],
)
def test_a_users_mistake_is_one_sentence(
    words: list[str],
    told: str,
    log: ClickLog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = ["--target", "127.0.0.1:1", "--log", log.path, "--seconds", "1"]
    assert command(monkeypatch, *needed, *words) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert told in error


def test_pictures_that_cannot_be_drawn_are_told_before_the_run(
    log: ClickLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        load_report, "find_spec", lambda name: None if name == "bokeh" else find_spec(name)
    )
    needed = ["--target", "127.0.0.1:1", "--log", log.path, "--seconds", "1", "--out", "out"]
    assert command(monkeypatch, *needed) == 2
    assert "draws pictures by bokeh, which is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_of_calls_that_all_failed_is_drawn(tmp_path: Path) -> None:
    failed = Latencies()
    failed.add(0.5)
    run = {
        "rate": 10.0,
        "sent": 1,
        "answered": 0,
        "failed": {"UNAVAILABLE": 1},
        "calls_per_second": 0.0,
        "rows_per_second": 0.0,
        "latency_ms": None,
        "failed_ms": {"UNAVAILABLE": failed.summary()},
        "late_ms": failed.summary(),
    }
    asked = {"candidates": 1, "mean_bytes": 10.0}
    found = {"model": "toy", "version": 7, "target": "here", "requests": asked, "runs": [run]}
    assert len(load_report.render(found)) == 3
    assert len(load_report.report(found, tmp_path)) == 3
    assert "| 10 | UNAVAILABLE | 1 | 500.00 |" in (tmp_path / "load.md").read_text()
