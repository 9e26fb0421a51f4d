"""`embedcomp serve` has an option for each of the server's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from embedcomp.cli.main import app
from embedcomp.errors import BadSettings
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving import repository as serving_repository
from embedcomp.serving import server, workers
from embedcomp.serving.settings import LOOKUPS, ServerSettings

OTHERS = ServerSettings(
    lookups="engine",
    host="::1",
    port=7,
    metrics_port=8,
    workers=2,
    threads=2,
    calls=3,
    max_batch_rows=30,
    max_wait_us=7,
    max_queue_rows=90,
    max_message_bytes=5,
    max_rows=11,
    max_ids=13,
    tls_cert=Path("cert"),
    tls_key=Path("key"),
    tls_client_ca=Path("ca"),
    token_file=Path("tokens"),
    without_token=("health", "reflection"),
    insecure=True,
    poll_seconds=3.0,
    connection_s=0.7,
    grace_s=0.5,
    log_share=0.25,
    log_values=True,
    shards=("one:1", "two:2"),
    shard_deadline_ms=7.0,
    shard_down="default",
    shard_tls_ca=Path("shards-ca.pem"),
    shard_tls_cert=Path("front.pem"),
    shard_tls_key=Path("front-key.pem"),
    trace=True,
)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def opened(
        artifact: Path,
        precision: str | None,
        budget: str | None,
        lookups: str,
        shards: Any = None,
    ) -> Any:
        assert lookups in LOOKUPS
        return SimpleNamespace(name=str(artifact), precision=precision, budget=budget)

    def repository(paths: list[Path], settings: ServerSettings, opened: Any) -> Any:
        return [opened(path) for path in paths]

    def serve(scorers: Callable[[], list[Any]], settings: ServerSettings) -> None:
        found.append([(one.name, one.precision, one.budget) for one in scorers()])
        found.append(settings)

    monkeypatch.setattr(Scorer, "open", opened)
    monkeypatch.setattr(serving_repository, "Repository", repository)

    def serve_by_workers(paths: list[Path], settings: ServerSettings, opened: Any) -> None:
        serve(lambda: repository(paths, settings, opened), settings)

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(workers, "serve_by_workers", serve_by_workers)
    return found


def _option(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return [flag]
    return [flag, ",".join(value) if isinstance(value, tuple) else str(value)]


def test_every_setting_is_an_option(served: list[Any]) -> None:
    values = dataclasses.asdict(OTHERS).items()
    options = [word for name, value in values for word in _option(name, value)]
    assert all(getattr(OTHERS, n) != v for n, v in dataclasses.asdict(ServerSettings()).items())
    result = CliRunner().invoke(
        app, ["serve", "small", "other", *options, "--precision", "int8", "--budget", "20x"]
    )
    assert result.exit_code == 0, result.output
    assert served == [[("small", "int8", "20x"), ("other", "int8", "20x")], OTHERS]


def test_what_is_not_given_is_the_default(served: list[Any]) -> None:
    assert CliRunner().invoke(app, ["serve", "small"]).exit_code == 0
    assert served == [[("small", None, None)], ServerSettings()]


def test_the_help_is_what_stands_beside_the_field() -> None:
    told = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert "Candidates that may wait to be scored; more are refused." in told
    assert "[default: 16384]" in told


def test_a_setting_out_of_range_is_refused(served: list[Any]) -> None:
    result = CliRunner().invoke(app, ["serve", "small", "--max-queue-rows", "-1"])
    assert isinstance(result.exception, BadSettings)
    assert "max_queue_rows is -1, but must be 0 or more" in str(result.exception)
