"""A job whose out is a URL: what its steps make is there, whole, and is gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from embedcomp.artifact.artifact import MANIFEST
from embedcomp.errors import BadSettings
from embedcomp.pipelines import cluster as ray_cluster
from embedcomp.pipelines import published
from embedcomp.pipelines.cluster import refuse_unshared
from embedcomp.pipelines.published import CannotPublish, Published
from embedcomp.pipelines.records import Records
from embedcomp.pipelines.settings import refuse, working_folder
from embedcomp.recipes.settings import CompressSettings, JobSettings


@pytest.fixture
def url() -> Iterator[str]:
    """An empty folder of an object store; nothing but a name tells its files from others'."""
    name = uuid4().hex
    yield f"memory://{name}/out"
    store = MemoryFileSystem()
    if store.exists(f"/{name}"):
        store.rm(f"/{name}", recursive=True)


def stored(url: str) -> dict[str, bytes]:
    store, root = MemoryFileSystem(), "/" + url.removeprefix("memory://")
    files = store.find(root) if store.exists(root) else []
    return {file.removeprefix(f"{root}/"): store.cat_file(file) for file in files}


def artifact(text: str, runs: list[str]) -> Callable[[Path], Path]:
    """A step that writes a version of a folder with a manifest."""

    def make(place: Path) -> Path:
        runs.append(text)
        known = [int(folder.name) for folder in place.glob("[0-9]*")]
        version = place / str(max(known, default=0) + 1)
        (version / "z").mkdir(parents=True)
        for name in (MANIFEST, "tensors", "z/more"):
            (version / name).write_text(f"{text} {name}")
        return version

    return make


def a_file(text: str, runs: list[str]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        runs.append(text)
        place.write_text(text)
        return place

    return make


def steps(url: str, folder: Path, seed: int, runs: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    there = Published(url, folder)
    there.fetch()
    records = Records(folder, published=there)
    records.step("first", "model", {"seed": seed}, artifact(f"model {seed}", runs))
    made = records.made("first")
    records.step("second", "plan.json", {"first": made}, a_file(f"plan {seed}", runs))


def whole(seed: int, version: int) -> dict[str, bytes]:
    model = {name: f"model {seed} {name}" for name in (MANIFEST, "tensors", "z/more")}
    found = {f"model/{version}/{name}": text.encode() for name, text in model.items()}
    return {**found, "plan.json": f"plan {seed}".encode()}


def without_records(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: text for name, text in found.items() if not name.startswith(".steps/")}


def test_what_steps_made_is_at_the_url_with_its_records(url: str, tmp_path: Path) -> None:
    runs: list[str] = []
    steps(url, tmp_path / "work", 0, runs)
    found = stored(url)
    assert without_records(found) == whole(0, 1)
    record = json.loads(found[".steps/first.json"])
    assert record["output"] == "model/1" and record["inputs"]["seed"] == 0
    steps(url, tmp_path / "work", 1, runs)
    assert without_records(stored(url)) == whole(0, 1) | whole(1, 2)
    assert json.loads(stored(url)[".steps/first.json"])["output"] == "model/2"


def test_another_machine_goes_on_from_there(url: str, tmp_path: Path) -> None:
    runs: list[str] = []
    steps(url, tmp_path / "one", 0, runs)
    before = stored(url)
    steps(url, tmp_path / "other", 0, runs)
    assert runs == ["model 0", "plan 0"] and stored(url) == before
    assert (tmp_path / "other/model/1/z/more").read_text() == "model 0 z/more"
    assert (tmp_path / "other/plan.json").read_text() == "plan 0"


def test_a_record_and_a_manifest_come_last_and_a_cut_copy_is_made_whole(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the copying ends, a record or a manifest that is there speaks of whole files."""
    runs: list[str] = []
    steps(url, tmp_path / "work", 0, runs)
    upload, write = Published._upload, published.write_whole
    for allowed in range(6):  # three files, their record, the plan; and then its record
        left = [allowed]

        def limited(call: Callable[..., None], left: list[int] = left) -> Callable[..., None]:
            def limit(*arguments: Any) -> None:
                if not left[0]:
                    raise OSError("the link is cut")
                left[0] -= 1
                call(*arguments)

            return limit

        work = tmp_path / f"work-{allowed}"
        with monkeypatch.context() as patch, pytest.raises(CannotPublish, match="the link is cut"):
            patch.setattr(Published, "_upload", limited(upload))
            patch.setattr(published, "write_whole", limited(write))
            steps(url, work, allowed + 1, runs)
        found, version = stored(url), allowed + 2
        for name in [name for name in found if name.startswith(".steps/")]:
            output = json.loads(found[name])["output"]
            assert output in found or f"{output}/{MANIFEST}" in found
        plan = b"plan %d" % (allowed + (allowed == 5))
        assert found["plan.json"] == plan
        assert (".steps/second.json" in found) == (allowed < 4)  # none of what is replaced
        for name in [name for name in found if name.endswith(MANIFEST)]:
            folder = name.removesuffix(MANIFEST)
            assert {folder + "tensors", folder + "z/more"} <= found.keys()
        steps(url, work, allowed + 1, runs)
        assert whole(allowed + 1, version).items() <= stored(url).items()
        assert runs[-2:] == [f"model {allowed + 1}", f"plan {allowed + 1}"]


def job(**changes: object) -> JobSettings:
    settings = JobSettings(log="log", out="out", compress=CompressSettings(budget="2x"))
    return replace(settings, **changes)


def test_a_job_works_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert working_folder(job(out="/out")) == Path("/out")
    one, other = (working_folder(job(out=f"s3://bucket/{name}")) for name in ("a", "b"))
    assert one != other and one.parent == other.parent == tmp_path / "embedcomp/jobs"
    assert working_folder(job(out="s3://bucket/a", work="/shared")) == Path("/shared")


def test_nodes_need_a_folder_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_node_cpus", lambda: [4, 4])
    refuse_unshared(job(out="s3://bucket/a", work="/shared"))
    with pytest.raises(BadSettings, match="the cluster has 2 nodes; give work=FOLDER as well"):
        refuse_unshared(job(out="s3://bucket/a"))
    monkeypatch.setattr(ray_cluster, "_node_cpus", lambda: [4])
    refuse_unshared(job(out="s3://bucket/a"))


def test_a_url_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSettings, match=r"file://.*/file/out cannot be written"):
        refuse(job(out=f"file://{tmp_path}/file/out"))


def test_a_local_url_is_written_as_well(tmp_path: Path) -> None:
    runs: list[str] = []
    steps(f"file://{tmp_path}/there/", tmp_path / "work", 0, runs)
    assert (tmp_path / "there/model/1/z/more").read_text() == "model 0 z/more"
    assert pafs.LocalFileSystem().get_file_info(f"{tmp_path}/there/.steps/second.json").is_file
