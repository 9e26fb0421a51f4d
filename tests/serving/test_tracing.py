"""Calls are spans of their callers' traces."""

from __future__ import annotations

import builtins
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from toy_scorer import ToyScorer, save_small

from embedcomp.errors import BadSettings
from embedcomp.serving import tracing
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.models import Models
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings

REASON = "extra trace: opentelemetry"
pytest.importorskip("opentelemetry.instrumentation.grpc", reason=REASON)
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason=REASON)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)

pytestmark = pytest.mark.server
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OURS = ("traceparent", f"00-{TRACE}-{PARENT}-01")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "_exporter", lambda: exporter)
    return exporter


@pytest.fixture
def running(told: InMemorySpanExporter) -> Iterator[Callable[..., ScoringServer]]:
    started: list[ScoringServer] = []

    def start(**changes: Any) -> ScoringServer:
        settings = ServerSettings(port=0, **{"trace": True} | changes)
        toy: Any = ToyScorer()
        started.append(ScoringServer(Models.of(settings, toy), settings))
        return started[-1]

    yield start
    for server in started:
        server.drain()


def call(server: ScoringServer, data: bytes, *metadata: tuple[str, str]) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        try:
            _, done = channel.unary_unary(f"/{SERVICE}/Predict").with_call(
                data, timeout=20, metadata=metadata
            )
        except grpc.RpcError as error:
            done = error
        return done.code()


def spans(server: ScoringServer, told: InMemorySpanExporter) -> dict[str, Any]:
    """Those of the calls so far, by name."""
    until = time.monotonic() + 10
    while time.monotonic() < until:  # a span ends when its answer may be there already
        server._traces._provider.force_flush()
        found = {span.name: span for span in told.get_finished_spans()}
        if f"/{SERVICE}/Predict" in found:
            told.clear()
            return found
        time.sleep(0.01)
    return {}


def test_a_call_is_a_span_of_its_callers_trace_and_has_parts(
    running: Callable[..., ScoringServer], told: InMemorySpanExporter, items: pa.RecordBatch
) -> None:
    server = running()
    assert call(server, to_request(items).SerializeToString(), OURS) == grpc.StatusCode.OK
    found = spans(server, told)
    whole = found.pop(f"/{SERVICE}/Predict")
    assert f"{whole.context.trace_id:032x}" == TRACE and f"{whole.parent.span_id:016x}" == PARENT
    assert whole.attributes["rpc.grpc.status_code"] == 0
    assert whole.resource.attributes["service.name"] == "embedcomp"
    assert set(found) == {"queue", "compute"}
    for part in found.values():
        assert part.parent.span_id == whole.context.span_id
    slack = 100_000_000  # a call may wait for a thread before its own span begins
    times = [found["queue"].start_time, found["queue"].end_time, found["compute"].end_time]
    assert times == sorted(times) and found["compute"].start_time == times[1]
    assert whole.start_time - slack <= times[0] and times[2] <= whole.end_time + slack


def test_a_refused_call_is_a_span_with_its_status(
    running: Callable[..., ScoringServer], told: InMemorySpanExporter
) -> None:
    server = running()
    assert call(server, b"\xff") == grpc.StatusCode.INVALID_ARGUMENT
    found = spans(server, told)
    whole = found.pop(f"/{SERVICE}/Predict")
    assert whole.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert not found
    (event,) = whole.events  # gRPC ends calls by an exception that says nothing
    assert not event.attributes["exception.message"]


def test_who_brings_no_token_leaves_no_span(
    running: Callable[..., ScoringServer],
    told: InMemorySpanExporter,
    items: pa.RecordBatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "tokens").write_text("word\n")
    server = running(token_file=tmp_path / "tokens")
    data = to_request(items).SerializeToString()
    assert call(server, data, OURS) == grpc.StatusCode.UNAUTHENTICATED
    server._traces._provider.force_flush()
    assert not told.get_finished_spans()
    assert call(server, data, OURS, ("authorization", "Bearer word")) == grpc.StatusCode.OK
    assert f"/{SERVICE}/Predict" in spans(server, told)


def test_spans_that_are_left_are_sent_when_the_server_stops(
    told: InMemorySpanExporter, items: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ads")
    settings, toy = ServerSettings(port=0, trace=True), ToyScorer()
    with ScoringServer(Models.of(settings, toy), settings) as server:  # type: ignore[arg-type]
        call(server, to_request(items).SerializeToString())
    found = {span.name: span for span in told.get_finished_spans()}
    assert found[f"/{SERVICE}/Predict"].resource.attributes["service.name"] == "ads"


@pytest.mark.slow
def test_a_collector_that_is_not_there_neither_fails_calls_nor_keeps_a_server_from_stopping(
    items: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    settings, toy = ServerSettings(port=0, trace=True), ToyScorer()
    server = ScoringServer(Models.of(settings, toy), settings)  # type: ignore[arg-type]
    assert call(server, to_request(items).SerializeToString()) == grpc.StatusCode.OK
    began = time.monotonic()
    server.drain()
    assert time.monotonic() - began < 15


def test_without_the_extra_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *given: Any) -> Any:
        if name.startswith("opentelemetry.instrumentation"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *given)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadSettings, match=r"pip install 'embedcomp\[trace\]', or leave out --trac"):
        tracing.Tracing()


@pytest.mark.slow
def test_the_command_ends_with_2_without_the_extra(tmp_path: Path) -> None:
    save_small(tmp_path / "small")
    hidden = "import sys; sys.modules['opentelemetry.instrumentation.grpc'] = None; "
    run = "from embedcomp.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden + run, "serve", str(tmp_path), "--port", "0", "--trace"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "install the extra" in done.stderr
