"""Every run of a benchmark has a record of its own, which says what ran."""

import json
import subprocess
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from benchmarks import result
from benchmarks.steps import Steps

WRITTEN = {"data": {"name": "made up"}, "settings": {}, "seeds": [0], "results": {"auc": 0.5}}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A committed program of one file with documents, which benchmarks take for their own."""

    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in ("program.py", "benchmarks/results/old.json", "docs/page.md", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(result, "TOP", tmp_path)
    result.source.cache_clear()
    yield tmp_path
    result.source.cache_clear()


def ran():
    result.source.cache_clear()
    return result.source()


def test_a_second_run_leaves_the_first_ones_record_as_it_is(tmp_path, monkeypatch):
    moments = [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)]
    clock = iter([*moments, moments[1]])
    monkeypatch.setattr(result, "datetime", SimpleNamespace(now=lambda _: next(clock)))
    first, second = (result.write("auc", **WRITTEN, folder=tmp_path) for _ in range(2))
    assert [json.loads(f.read_text())["date"][:10] for f in (first, second)] == [
        "2026-01-01",
        "2026-01-02",
    ]
    with pytest.raises(FileExistsError):
        result.write("auc", **WRITTEN, folder=tmp_path)


def test_a_record_says_which_commit_ran_and_that_nothing_differed_from_it(checkout, tmp_path):
    file = result.write("auc", **WRITTEN, folder=tmp_path / "records")
    told = json.loads(file.read_text())
    assert told["commit"] == ran().commit and len(told["commit"]) == 40
    assert told["dirty"] is False
    assert file.parent.name == "auc" and file.stem.endswith(f"-{told['commit'][:7]}")
    assert told.keys() >= {"date", "machine", "versions", *WRITTEN}


@pytest.mark.parametrize("changed", ["program.py", "another.py"])
def test_a_changed_program_is_another_one_for_each_change(checkout, changed):
    clean = ran()
    (checkout / changed).write_text("second")
    second = ran()
    (checkout / changed).write_text("third")
    third = ran()
    assert len({clean.name, second.name, third.name}) == 3
    assert second.name.startswith(f"{clean.name}+")


@pytest.mark.parametrize(
    "written", ["benchmarks/results/new.json", "docs/page.md", "README.md", "docs/new.md"]
)
def test_records_and_documents_are_not_the_program(checkout, written):
    (checkout / written).write_text("second")
    assert not ran().changes


def test_a_program_changed_during_the_run_makes_the_record_dirty(checkout, tmp_path):
    assert not ran().changes
    (checkout / "program.py").write_text("second")
    told = json.loads(result.write("auc", **WRITTEN, folder=tmp_path / "records").read_text())
    assert told["dirty"] is True


def test_what_is_done_already_gets_no_second_record(tmp_path):
    steps = Steps(tmp_path / "work", {})
    first = steps.record("auc", **WRITTEN, folder=tmp_path / "records")
    assert steps.record("auc", **WRITTEN, folder=tmp_path / "records") == first
    other = steps.record("loss", **WRITTEN, folder=tmp_path / "records")
    assert sorted((tmp_path / "records").glob("*/*.json")) == sorted([first, other])
