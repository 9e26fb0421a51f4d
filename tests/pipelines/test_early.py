"""A job that cannot be is refused before Ray starts and before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcomp.log.click_log import ClickLog
from embedcomp.pipelines import run

JOB = 'log = "{log}"\nout = "{out}"\n[compress]\n{compress}\n'


@pytest.mark.parametrize(
    ("compress", "out", "message"),
    [
        ('budget = "5y"', "out", "the budget '5y' is not a positive size; write 5x"),
        ('budget = "5x"\nmethods = ["lowrank"]', "out", "there is no method 'lowrank'; the"),
        ('budget = "5x"\nlatency_budget = "1ms"', "out", "is not a time and a number of rows"),
        ('budget = "5x"', "job.toml/out", "cannot be written"),
    ],
)
def test_a_mistake_is_told_before_ray_starts(
    synth_log: ClickLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compress: str,
    out: str,
    message: str,
) -> None:
    def connected() -> None:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(run, "connected", connected)
    file = tmp_path / "job.toml"
    file.write_text(JOB.format(log=synth_log.path, out=tmp_path / out, compress=compress))
    assert run.main([str(file)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]
