"""Versions come and go while calls are scored; what is broken never answers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from toy_scorer import ToyScorer, save_small

from embedcomp.artifact import artifact
from embedcomp.errors import BadArtifact
from embedcomp.kernels import native
from embedcomp.scorer.scorer import Scorer
from embedcomp.serving.client import Client
from embedcomp.serving.doors import inference, typed
from embedcomp.serving.errors import CallFailed, Refused
from embedcomp.serving.models import READY, UNAVAILABLE
from embedcomp.serving.repository import Repository
from embedcomp.serving.server import ScoringServer
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.wire import inference_pb2 as wire
from embedcomp.support.files import replacing

SETTINGS = ServerSettings(port=0, max_rows=100)
CODE = grpc.StatusCode
MADE = tempfile.TemporaryDirectory()  # of models that are saved once, and copied


@cache
def made(seed: int) -> Path:
    return save_small(Path(MADE.name) / str(seed), seed, compiled=True)


def save(out: Path, seed: int) -> Path:
    """A new version of a model, which is there at once."""
    place = out / str(max(artifact.versions(out), default=0) + 1)
    with replacing(place) as fresh:
        shutil.copytree(made(seed), fresh)
    return place


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a model with a version, and another model."""
    save(tmp_path / "models" / "clicks", 1)
    save(tmp_path / "models" / "other", 9)
    return tmp_path / "models"


@pytest.fixture
def rows(columns: dict[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def opened(*paths: Path, settings: ServerSettings = SETTINGS) -> Repository:
    return Repository(paths, settings, Scorer.open)


def current(repository: Repository, name: str = "clicks") -> int:
    return repository.models.find(name).version


def state(repository: Repository, version: int, name: str = "clicks") -> tuple[str, str]:
    (found,) = (one for one in repository.models.states(name) if one.version == version)
    return found.state, found.reason


def test_a_path_is_an_artifact_a_model_or_a_folder_of_models(home: Path) -> None:
    save(home / "clicks", 2)
    assert current(opened(home / "clicks" / "1")) == 1
    assert current(opened(home / "clicks")) == 2
    both = opened(home)
    assert [(one.name, one.version) for one in both.models.loaded()] == [
        ("clicks", 2),
        ("other", 1),
    ]
    with pytest.raises(Refused, match="name the one"):
        both.models.find()


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="holds no model"):
        opened(tmp_path)


def test_a_new_version_is_found_and_the_one_before_stays_open(home: Path) -> None:
    repository = opened(home / "clicks")
    for seed in (2, 3):
        save(home / "clicks", seed)
        repository.poll()
        assert current(repository) == seed
    assert [one.version for one in repository.models.loaded()] == [2, 3]
    assert state(repository, 1) == (UNAVAILABLE, "version 3 is served")
    repository.poll()
    assert current(repository) == 3


def test_the_newest_of_several_new_versions_that_can_be_is_taken(home: Path) -> None:
    repository = opened(home / "clicks")
    save(home / "clicks", 2)
    _damaged("cut short", save(home / "clicks", 3))
    repository.poll()
    assert current(repository) == 2 and state(repository, 3)[0] == UNAVAILABLE


def test_two_models_of_one_name_are_refused(home: Path, tmp_path: Path) -> None:
    save(home / "clicks", 2)
    save(tmp_path / "elsewhere" / "clicks", 3)
    for paths in (
        (home / "clicks" / "1", home / "clicks" / "2"),
        (home, tmp_path / "elsewhere" / "clicks"),
    ):
        with pytest.raises(BadArtifact, match="are both called 'clicks'"):
            opened(*paths)
    assert current(opened(home, home / "clicks")) == 2  # the same one, twice


def test_an_artifact_stays_the_one_that_was_asked_for(home: Path) -> None:
    repository = opened(home / "clicks" / "1")
    save(home / "clicks", 2)
    repository.poll()
    assert current(repository) == 1


def test_new_models_of_a_folder_are_found(home: Path) -> None:
    repository = opened(home)
    save(home / "third", 3)
    repository.poll()
    assert current(repository, "third") == 1


def _damaged(what: str, folder: Path) -> str:
    """Damage an artifact; gives what is said of it."""
    manifest = folder / "manifest.json"
    if what == "cut short":
        tensors = folder / "model.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-10])
        return "checksum differs"
    if what == "another file":
        (folder / "features" / "features.json").write_text("{}")
        return "checksum differs"
    if what == "no file":
        (folder / "model.safetensors").unlink()
        return "model.safetensors"
    if what == "future":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
        return "format 99"
    if what == "no manifest":
        manifest.unlink()
        return "manifest"
    features = json.loads((folder / "features" / "features.json").read_text())
    features["ids"][0]["name"] = "renamed"  # a feature that the model reads is missing
    (folder / "features" / "features.json").write_text(json.dumps(features))
    told = json.loads(manifest.read_text())
    del told["checksums"]["features/features.json"]
    manifest.write_text(json.dumps(told))
    return "user_id"


DAMAGES = ["cut short", "another file", "no file", "future", "no manifest", "missing feature"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_version_takes_no_traffic_and_says_why(damage: str, home: Path) -> None:
    repository = opened(home / "clicks")
    said = _damaged(damage, save(home / "clicks", 2))
    for _ in range(2):
        repository.poll()
        assert current(repository) == 1
    found, reason = state(repository, 2)
    assert found == UNAVAILABLE and said in reason
    with pytest.raises(Refused, match=r"version 2 .* cannot be served") as caught:
        repository.load("clicks", 2)
    assert caught.value.code == CODE.FAILED_PRECONDITION and said in str(caught.value)
    with pytest.raises(Refused, match=r"UNAVAILABLE") as caught:
        repository.models.find("clicks", 2)
    shutil.rmtree(home / "clicks" / "2")
    save(home / "clicks", 2)  # written again, and whole
    repository.poll()
    assert current(repository) == 2 and state(repository, 2) == (READY, "")


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who is not root, whom modes of files stop."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was == 0:
            os.seteuid(was)


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A folder of two models that any user may read; pytest's own are for one user alone."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "models"
        save(home / "clicks", 1)
        save(home / "other", 9)
        for place in (Path(folder), home, *home.rglob("*")):
            place.chmod(0o755)
        yield home
        for place in (home, *home.iterdir()):
            place.chmod(0o755)


FILES = ["model.safetensors", "manifest.json", "features/features.json"]
WRONG = ["unreadable", "folder", "broken disk"]


def _spoilt(how: str, file: Path) -> str:
    """Make a file unreadable; gives what is said of it."""
    if how == "unreadable":
        file.chmod(0)
        return "Permission denied"
    file.unlink()
    if how == "folder":
        file.mkdir()
        return "has no manifest.json" if file.name == "manifest.json" else "Is a directory"
    file.symlink_to("/proc/self/mem")  # which gives EIO where nothing is mapped
    return "Input/output error"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", WRONG)
def test_a_version_that_cannot_be_read_takes_no_traffic_until_it_can(
    how: str, name: str, open_home: Path
) -> None:
    repository, place = opened(open_home / "clicks"), save(open_home / "clicks", 2)
    kept = (place / name).read_bytes()
    said = _spoilt(how, place / name)
    with without_rights() if how == "unreadable" else nullcontext():
        repository.poll()
    assert current(repository) == 1
    found, reason = state(repository, 2)
    assert found == UNAVAILABLE and said in reason
    if how == "unreadable":
        (place / name).chmod(0o644)
    else:
        shutil.rmtree(place / name) if how == "folder" else (place / name).unlink()
        (place / name).write_bytes(kept)
    repository.poll()
    assert current(repository) == 2 and state(repository, 2) == (READY, "")


def test_a_version_is_tried_again_when_the_disk_is_well_again(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def open_one(place: Path) -> Scorer:
        if broken and place.name == "2":
            raise OSError(5, "Input/output error")
        return Scorer.open(place)

    repository = Repository([home / "clicks"], SETTINGS, open_one)
    save(home / "clicks", 2)
    for _ in range(3):
        repository.poll()
    assert state(repository, 2) == (UNAVAILABLE, "[Errno 5] Input/output error")
    assert caplog.text.count("is not served") == 1
    broken = False
    repository.poll()
    assert current(repository) == 2


def test_a_folder_that_cannot_be_read_stops_no_other_model(open_home: Path) -> None:
    repository = opened(open_home)
    save(open_home / "clicks", 2)
    save(open_home / "other", 3)
    (open_home / "clicks").chmod(0)
    with without_rights():
        repository.poll()
        assert current(repository, "other") == 2
        found, reason = state(repository, 1)
        assert found == READY and "Permission denied" in reason and "from memory" in reason
        with pytest.raises(Refused, match="on disk"):
            repository.load("clicks")
        assert [one.name for one in opened(open_home).models.loaded()] == ["other"]
        with pytest.raises(BadArtifact, match="holds no model"):
            opened(open_home / "clicks")
    (open_home / "clicks").chmod(0o755)
    repository.poll()
    assert current(repository) == 2 and state(repository, 1) == (READY, "")


def test_a_broken_version_is_opened_once(home: Path) -> None:
    tried: list[str] = []

    def open_one(place: Path) -> Scorer:
        tried.append(place.name)
        return Scorer.open(place)

    repository = Repository([home / "clicks"], SETTINGS, open_one)
    _damaged("cut short", save(home / "clicks", 2))
    for _ in range(3):
        repository.poll()
    assert tried == ["1", "2"]


def test_a_version_that_opens_but_does_not_score_is_refused(home: Path) -> None:
    toy: Any = ToyScorer()
    toy.fault = RuntimeError("no such table")
    save(home / "clicks", 2)

    def open_one(place: Path) -> Any:
        return toy if place.name == "2" else Scorer.open(place)

    repository = Repository([home / "clicks"], SETTINGS, open_one)
    assert current(repository) == 1
    assert state(repository, 2) == (UNAVAILABLE, "RuntimeError: no such table")


def test_the_newest_version_that_can_be_is_served_from_the_start(home: Path) -> None:
    _damaged("cut short", save(home / "clicks", 2))
    assert current(opened(home / "clicks")) == 1
    _damaged("cut short", home / "clicks" / "1")
    with pytest.raises(BadArtifact, match="checksum differs"):
        opened(home / "clicks")


def test_a_version_that_is_deleted_is_served_on(home: Path, rows: pa.RecordBatch) -> None:
    repository = opened(home / "clicks")
    wanted = repository.models.find("clicks").scorer.score(rows)
    shutil.rmtree(home / "clicks")
    repository.poll()
    assert np.array_equal(repository.models.find("clicks").scorer.score(rows), wanted)
    assert state(repository, 1) == (READY, "its folder is gone; it is served from memory")


def test_going_back_is_one_call(home: Path) -> None:
    save(home / "clicks", 2)
    repository = opened(home / "clicks")
    repository.load("clicks", 1)
    assert current(repository) == 1
    repository.poll()
    assert current(repository) == 1, "a poll undid it"
    repository.load("clicks")
    assert current(repository) == 2


def test_what_is_opened_anew_answers_as_before(home: Path) -> None:
    repository = opened(home)
    save(home / "clicks", 2)
    repository.poll()
    repository.load("clicks", 1)
    before = {(one.name, one.version): one for one in repository.models.loaded()}
    assert sorted(before) == [("clicks", 1), ("clicks", 2), ("other", 1)]
    repository.reopen()
    after = {(one.name, one.version): one for one in repository.models.loaded()}
    assert after.keys() == before.keys() and current(repository) == 1
    assert not any(after[name] is one for name, one in before.items())
    shutil.rmtree(home / "clicks" / "2")
    repository.reopen()
    assert current(repository) == 1
    assert [(one.name, one.version) for one in repository.models.loaded()] == [
        ("clicks", 1),
        ("other", 1),
    ]


def test_a_model_that_is_unloaded_is_gone_until_it_is_loaded(home: Path) -> None:
    repository = opened(home)
    repository.unload("clicks")
    repository.poll()
    with pytest.raises(Refused, match="it was unloaded") as caught:
        repository.models.find("clicks", 1)
    assert caught.value.code == CODE.NOT_FOUND
    repository.load("clicks")
    assert current(repository) == 1
    for name, version in (("third", 0), ("clicks", 7)):
        with pytest.raises(Refused, match="on disk"):
            repository.load(name, version)
    with pytest.raises(Refused, match="is served here"):
        repository.unload("third")


@pytest.fixture
def served(home: Path) -> Iterator[tuple[Repository, str]]:
    settings = ServerSettings(port=0, poll_seconds=0.1)
    repository = opened(home / "clicks", settings=settings)
    with ScoringServer(repository.models, settings, repository) as server:
        repository.keep_polling()
        yield repository, f"127.0.0.1:{server.port}"
        repository.stop()


Call = Callable[[str, Any, Any], Any]


def calls(target: str, method: str, request: Any, answer: Any) -> Any:
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(f"/{inference.SERVICE}/{method}")
        return answer.FromString(call(request.SerializeToString(), timeout=20))


@pytest.mark.server
def test_versions_are_swapped_under_calls(
    served: tuple[Repository, str], home: Path, rows: pa.RecordBatch
) -> None:
    _, target = served
    wanted = {}
    for seed in (1, 2, 3):
        if seed > 1:
            save(home / "clicks", seed)
        wanted[seed] = Scorer.open(home / "clicks" / str(seed)).score(rows)
    until, seen = time.monotonic() + 30, set()
    with Client(target) as client:
        while 3 not in seen and time.monotonic() < until:
            scores = client.predict(rows)
            (version,) = (v for v, of in wanted.items() if np.array_equal(of, scores))
            seen.add(version)
    assert 3 in seen and seen <= {1, 2, 3}


@pytest.mark.server
def test_requests_are_read_by_the_engine_after_a_swap_too(
    served: tuple[Repository, str],
    home: Path,
    rows: pa.RecordBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if native.library() is None:
        pytest.skip("the engine was not built")
    repository, target = served
    save(home / "clicks", 2)
    repository.poll()
    assert len(repository.models.loaded()) == 2
    wanted = repository.models.find("clicks").scorer.score(rows)
    with Client(target) as client, Client(target, version=1) as old:
        before = old.predict(rows)
        monkeypatch.setattr(typed, "parsed", lambda *_: pytest.fail("Python read it"))
        assert np.array_equal(client.predict(rows), wanted)
    assert not np.array_equal(before, wanted)


@pytest.mark.server
@pytest.mark.parametrize("damage", DAMAGES)
def test_calls_say_why_a_version_is_broken(
    damage: str, served: tuple[Repository, str], home: Path, rows: pa.RecordBatch
) -> None:
    repository, target = served
    repository.stop()
    wanted = repository.models.find("clicks").scorer.score(rows)
    said = _damaged(damage, save(home / "clicks", 2))
    repository.poll()
    with Client(target) as client:
        assert np.array_equal(client.predict(rows), wanted)
    index = calls(
        target, "RepositoryIndex", wire.RepositoryIndexRequest(), wire.RepositoryIndexResponse
    )
    told = {one.version: one for one in index.models}
    assert told["1"].state == READY
    assert told["2"].state == UNAVAILABLE and said in told["2"].reason
    request = wire.ModelReadyRequest(name="clicks", version="2")
    with pytest.raises(grpc.RpcError, match="version 2 is not served here") as caught:
        calls(target, "ModelReady", request, wire.ModelReadyResponse)
    assert caught.value.code() == CODE.NOT_FOUND and said in caught.value.details()


@pytest.mark.server
def test_load_and_unload_are_calls(
    served: tuple[Repository, str], home: Path, rows: pa.RecordBatch
) -> None:
    repository, target = served
    save(home / "clicks", 2)
    repository.stop()
    for parameters, version in (
        ({}, 2),
        ({"version": wire.ModelRepositoryParameter(int64_param=1)}, 1),
        ({"version": wire.ModelRepositoryParameter(string_param="2")}, 2),
        ({"config": _config(1)}, 1),
        ({"config": wire.ModelRepositoryParameter(string_param="{}")}, 2),
    ):
        request = wire.RepositoryModelLoadRequest(model_name="clicks", parameters=parameters)
        calls(target, "RepositoryModelLoad", request, wire.RepositoryModelLoadResponse)
        assert current(repository) == version
    request = wire.RepositoryModelLoadRequest(
        model_name="clicks",
        parameters={"config": wire.ModelRepositoryParameter(string_param="[1")},
    )
    with pytest.raises(grpc.RpcError, match="does not name one specific version"):
        calls(target, "RepositoryModelLoad", request, wire.RepositoryModelLoadResponse)
    more = json.dumps({"version_policy": {"specific": {"versions": [1]}}, "max_batch_size": 8})
    request.parameters["config"].string_param = more
    with pytest.raises(grpc.RpcError, match="nothing else can be set"):
        calls(target, "RepositoryModelLoad", request, wire.RepositoryModelLoadResponse)
    assert current(repository) == 2
    request = wire.RepositoryModelUnloadRequest(model_name="clicks")
    calls(target, "RepositoryModelUnload", request, wire.RepositoryModelUnloadResponse)
    ready = calls(target, "ServerReady", wire.ServerReadyRequest(), wire.ServerReadyResponse)
    assert not ready.ready
    index = calls(
        target, "RepositoryIndex", wire.RepositoryIndexRequest(), wire.RepositoryIndexResponse
    )
    told = {(one.version, one.state, one.reason) for one in index.models}
    assert told == {(v, UNAVAILABLE, "it was unloaded") for v in ("1", "2")}
    with Client(target) as client, pytest.raises(CallFailed, match="no model is served"):
        client.predict(rows)


def _config(version: int) -> wire.ModelRepositoryParameter:
    policy = {"version_policy": {"specific": {"versions": [version]}}}
    return wire.ModelRepositoryParameter(string_param=json.dumps(policy))
