"""Versions by label: stable, canary with its share of keys, shadow that is only compared."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
from test_repository import current, opened, save, state

from embedcomp.errors import BadSettings
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving import server
from embedcomp.serving.client import Client
from embedcomp.serving.convert import to_request
from embedcomp.serving.doors.door import KEY
from embedcomp.serving.doors.inference import SERVICE as INFERENCE
from embedcomp.serving.doors.typed import SERVICE
from embedcomp.serving.errors import Refused
from embedcomp.serving.labels import FILE, Labels, read
from embedcomp.serving.models import UNAVAILABLE
from embedcomp.serving.repository import Repository
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.wire import inference_pb2
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

KEYS = 400


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """A model of three versions."""
    for seed in (1, 2, 3):
        save(tmp_path / "clicks", seed)
    return tmp_path / "clicks"


@pytest.fixture
def rows(columns: dict[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def label(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text)


def asked(channel: grpc.Channel, request: wire.PredictRequest, key: str = "") -> int:
    """The version that answers."""
    method = channel.unary_unary(
        f"/{SERVICE}/Predict",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=wire.PredictResponse.FromString,
    )
    return int(method(request, timeout=20, metadata=[(KEY, key)] if key else None).version)


@pytest.mark.slow
def test_the_stable_version_answers_and_newer_ones_wait_to_be_named(clicks: Path) -> None:
    label(clicks, "stable = 2")
    repository = opened(clicks)
    assert current(repository) == 2
    assert repository.models.find("clicks", label="stable").version == 2
    save(clicks, 4)
    repository.poll()
    assert current(repository) == 2
    label(clicks, "stable = 4")
    repository.poll()
    assert current(repository) == 4
    assert [one.version for one in repository.models.loaded()] == [2, 4]
    (clicks / FILE).unlink()
    save(clicks, 5)
    repository.poll()
    assert current(repository) == 5


@pytest.mark.slow
def test_going_back_is_one_call_also_where_there_are_labels(clicks: Path) -> None:
    label(clicks, "stable = 3\ncanary = 2\ncanary_share = 0.5")
    repository = opened(clicks)
    repository.load("clicks", 1)
    assert current(repository) == 1
    repository.poll()  # nothing new is said
    assert current(repository) == 1
    assert repository.models.find("clicks", label="canary").version == 2


def test_the_newest_version_answers_where_none_is_called_stable(clicks: Path) -> None:
    label(clicks, "canary = 1\ncanary_share = 0.5")
    repository = opened(clicks)
    assert current(repository) == 3
    assert [one.version for one in repository.models.loaded()] == [1, 3]
    save(clicks, 4)
    repository.poll()
    assert current(repository) == 4
    assert repository.models.find("clicks", label="canary").version == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stable = ", "cannot be read"),
        ("stabel = 3", "stabel unexpected keyword argument"),
        ("stable = 'new'", "stable input should be a valid integer"),
        ("canary = 2\ncanary_share = 1.5", "canary_share is 1.5, but must be 1 or less"),
        ("shadow = -1", "shadow is -1, but must be 0 or more"),
    ],
)
def test_labels_that_say_something_else_leave_the_old_ones(
    text: str, why: str, clicks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label(clicks, "stable = 2")
    repository = opened(clicks)
    label(clicks, text)
    with pytest.raises(BadSettings, match=why):
        read(clicks)
    for _ in range(2):
        repository.poll()
    assert current(repository) == 2 and repository.models.labels("clicks") == Labels(stable=2)
    assert caplog.text.count("stay as they were") == 1


def test_labels_of_versions_that_cannot_be_served_leave_the_old_ones(clicks: Path) -> None:
    label(clicks, "stable = 2")
    repository = opened(clicks)
    (clicks / "3" / "model.safetensors").write_bytes(b"torn")
    for text, version in (("stable = 3", 3), ("stable = 2\ncanary = 9", 9)):
        label(clicks, text)
        repository.poll()
        assert current(repository) == 2 and state(repository, version)[0] == UNAVAILABLE
    with pytest.raises(Refused, match="no version of model 'clicks' is labelled 'canary'"):
        repository.models.find("clicks", label="canary")


@pytest.mark.server
def test_what_is_served_is_told_with_the_current_version_first(
    clicks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(clicks, "stable = 2\ncanary = 1\nshadow = 3")
    settings, told = ServerSettings(port=0), []

    def tell(lines: list[str]) -> None:
        told.extend(line.split()[1:4] for line in lines if line.startswith("serving"))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(server, "_end_within", lambda _: None)  # the tests go on
    server.serve(lambda: opened(clicks, settings=settings), settings, tell)
    assert [int(version) for _, _, version in told] == [2, 1, 3]


@pytest.fixture
def served(clicks: Path) -> Iterator[tuple[Repository, ScoringServer, grpc.Channel]]:
    label(clicks, "stable = 1\ncanary = 2\ncanary_share = 0.25\nshadow = 3\nshadow_share = 0.5")
    settings = ServerSettings(port=0)
    repository = opened(clicks, settings=settings)
    with (
        ScoringServer(repository.models, settings, repository) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield repository, server, channel


@pytest.mark.slow
@pytest.mark.server
def test_the_canary_answers_its_share_of_keys_and_the_same_ones_each_time(
    served: tuple[Repository, ScoringServer, grpc.Channel], clicks: Path, rows: pa.RecordBatch
) -> None:
    _, server, channel = served
    request = to_request(rows)
    answered = [asked(channel, request, f"user {i}") for i in range(KEYS)]
    share = Counter(answered)[2] / KEYS
    assert set(answered) == {1, 2} and abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / KEYS)
    assert answered == [asked(channel, request, f"user {i}") for i in range(KEYS)]
    assert len({asked(channel, request) for _ in range(9)}) == 1  # by its bytes
    for label, key, version in (("", "user 7", answered[7]), ("shadow", "", 3)):
        with Client(f"127.0.0.1:{server.port}", label=label) as client:
            found = client.predict(rows, key=key)
            assert np.array_equal(found, Scorer.open(clicks / str(version)).score(rows))
            assert label == "" or client.metadata().version == version
    for name, version in (("stable", 1), ("canary", 2), ("shadow", 3)):
        request.label = name
        assert asked(channel, request) == version
    request.label = "blue"
    with pytest.raises(grpc.RpcError, match="no version of model 'clicks' is labelled 'blue'"):
        asked(channel, request)
    infer = channel.unary_unary(
        f"/{INFERENCE}/ModelReady",
        request_serializer=inference_pb2.ModelReadyRequest.SerializeToString,
    )
    infer(inference_pb2.ModelReadyRequest(name="clicks", version="canary"), timeout=20)


@pytest.mark.server
def test_a_shadow_scores_its_share_and_its_differences_are_counted(
    served: tuple[Repository, ScoringServer, grpc.Channel], clicks: Path, rows: pa.RecordBatch
) -> None:
    repository, server, channel = served
    shadowed = Labels(shadow=3, shadow_share=0.5)
    keys = [f"user {i}" for i in range(20)]
    wanted = {version: Scorer.open(clicks / str(version)).score(rows) for version in (1, 2, 3)}
    calls, total, most = 0, 0.0, 0.0
    for key in keys:
        version = asked(channel, to_request(rows), key)
        if shadowed.is_shadowed(key.encode()):
            off = np.abs(wanted[3] - wanted[version])
            calls, total, most = calls + 1, total + off.sum(), max(most, off.max())
        _settle(server)
    text = server.metrics.text().decode()
    of = '{model="clicks",version="3"}'

    def value(name: str) -> float:
        return float(text.partition(f"\n{name}{of} ")[2].partition("\n")[0])

    assert 0 < calls < len(keys)
    assert value("embedcomp_shadowed_rows_total") == calls * rows.num_rows
    assert value("embedcomp_shadow_difference_sum_total") == pytest.approx(total, rel=1e-5)
    assert value("embedcomp_shadow_difference_max") == pytest.approx(most, rel=1e-6)
    assert repository.models.find("clicks").counts.rows > 0


def _settle(server: ScoringServer) -> None:
    """Wait until no shadow scores."""
    shadows = server._scoring._shadows
    shadows._thread.submit(lambda: None).result(20)


@pytest.mark.server
def test_a_shadow_that_cannot_score_is_counted_and_disturbs_nobody(
    served: tuple[Repository, ScoringServer, grpc.Channel],
    rows: pa.RecordBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository, server, channel = served
    shadow = repository.models.find("clicks", 3)

    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(shadow, "read_message", fails)
    shadowed = Labels(shadow=3, shadow_share=0.5).is_shadowed
    key = next(str(i) for i in range(99) if shadowed(str(i).encode()))
    assert asked(channel, to_request(rows), key) in (1, 2)
    _settle(server)
    wanted = 'embedcomp_not_shadowed_total{model="clicks",reason="failed",version="3"} 1.0'
    assert wanted in server.metrics.text().decode()
