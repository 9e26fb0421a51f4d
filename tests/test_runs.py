"""`make bench` runs every script of benchmarks/, with arguments that it takes."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import child, runs
from benchmarks.result import source
from benchmarks.runs import RUNS, Run

# started by low_rank_speed and workers, and what starts the others
PARTS = {"low_rank_one", "workers_one", "runs"}
HERE = (Path("data"), Path("work"), Path("results"))


def test_every_script_is_among_the_runs():
    files = Path(runs.__file__).parent.glob("*.py")
    scripts = {file.stem for file in files if '__name__ == "__main__"' in file.read_text()}
    assert {run.script for run in RUNS} == scripts - PARTS
    assert len({run.record for run in RUNS}) == len(RUNS)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.record)
def test_a_script_takes_its_runs_arguments(run, tiny, monkeypatch):
    class Parsed(Exception):
        """The arguments were taken."""

    def parse(self):
        original(self)
        raise Parsed

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", run.command(*HERE, tiny))
    with pytest.raises(Parsed):
        import_module(f"benchmarks.{run.script}").main()


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Runs of scripts that write a record, fail or end without one; what was started."""
    started = []

    def run(command, *, shown):
        name = command[0].removeprefix("benchmarks.")
        started.append(name)
        if name == "fails":
            raise child.ChildFailed("no memory")
        if name == "writes":
            file = tmp_path / "writes" / f"2026-01-01-{source().name}.json"
            file.parent.mkdir()
            file.write_text("{}")
        return child.Finished("", 60.0, 0)

    monkeypatch.setattr(child, "run", run)
    return started


def test_a_run_that_fails_does_not_stop_the_others(made, tmp_path):
    chosen = [Run(script=name, record=name, minutes=1) for name in ("fails", "ends", "writes")]
    failed = runs.run(chosen, tmp_path, tmp_path, tmp_path, tiny=False)
    assert made == ["fails", "ends", "writes"]
    assert failed == ["fails: no memory", "ends: it ended without a record of that name"]


def test_a_run_that_has_a_record_of_this_commit_is_not_run_again(made, tmp_path):
    chosen = [Run(script="writes", record="writes", minutes=1)]
    for _ in range(2):
        assert runs.run(chosen, tmp_path, tmp_path, tmp_path, tiny=False) == []
    assert made == ["writes"]
