"""Kept counts and the memory of counting, by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from embedcomp.artifact.artifact import Artifact
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from tests.cli.test_commands import run


@pytest.fixture
def log(synth_log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log whose training split is of two days, of which the first is there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(synth_log.path, "log")
    folder = tmp_path / "log"
    schema = (folder / "schema.toml").read_text()
    (folder / "schema.toml").write_text(schema.replace('"train.parquet"', '"day=*/*.parquet"'))
    (folder / "day=1").mkdir()
    (folder / "train.parquet").rename(folder / "day=1/a.parquet")
    return folder


def told(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.slow
def test_a_day_is_added_listed_and_forgotten(
    log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def profile(*more: str) -> dict[str, Any]:
        assert run(monkeypatch, "log", "profile", "log", "--json", "o.json", *more) == 0
        return told(tmp_path / "o.json")

    one = profile()
    assert one == profile("--counts", "counts") == profile("--count-memory", "100kB")
    (log / "day=2").mkdir()
    shutil.copy(log / "valid.parquet", log / "day=2/b.parquet")
    both = profile()
    assert both["rows"] == one["rows"] + 1200
    (log / "day=1/a.parquet").unlink()
    assert profile("--counts", "counts") == both
    assert run(monkeypatch, "log", "counts", "counts", "--json", "kept.json") == 0
    kept = told(tmp_path / "kept.json")["kept"]
    assert [entry["file"] for entry in kept] == ["day=1/a.parquet", "day=2/b.parquet"]
    assert [entry["rows"] for entry in kept] == [one["rows"], 1200]
    assert run(monkeypatch, "log", "forget", "counts", "day=1/*", "--json", "gone.json") == 0
    assert told(tmp_path / "gone.json")["forgotten"] == kept[:1]
    assert profile("--counts", "counts") == profile()


@pytest.mark.slow
def test_a_model_is_trained_on_vocabularies_of_kept_counts(
    log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However little memory counting has."""
    clicks = ClickLog(str(log))
    wanted = Features.from_counts(clicks, count(clicks, clicks.pieces("train")), 2)
    for more in (["--counts", "counts"], ["--count-memory", "100kB"]):
        shape = ["--model-set", "width=4", "--model-set", "hidden=[8]", "--epochs", "0"]
        assert run(monkeypatch, "train", log, "--model", "dlrm", "--out", "m", *shape, *more) == 0
        found = Artifact.open(tmp_path / "m").features
        assert found.dense == wanted.dense
        for mine, theirs in zip(found.ids, wanted.ids, strict=True):
            assert mine.vocabulary.values.equals(theirs.vocabulary.values)
            assert mine.vocabulary.counts.tolist() == theirs.vocabulary.counts.tolist()
