"""Machine code of a program is a cache: made on request, keyed by torch and CPU, never needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import embedcomp
from embedcomp.scorer import compiled
from tests.cases import Case, dlrm, sequences
from tests.cli.test_commands import run


def saved(case: Case, folder: Path) -> Path:
    torch.manual_seed(0)
    embedcomp.save(case.model, folder, score=case.score, example=case.inputs(1))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_what_is_built_scores_the_same_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = sequences()
    case.model.eval()
    path, inputs = saved(case, tmp_path / "m"), case.inputs(2)
    before = embedcomp.Scorer.open(path)
    assert before.engine.startswith("torch, since")
    assert run(monkeypatch, "build", path) == 0
    assert str(tmp_path / "cache/embedcomp") in capsys.readouterr().out.replace("\n", "")
    after = embedcomp.Scorer.open(path)
    assert after.engine.startswith("machine code of AOTInductor, since")
    np.testing.assert_allclose(after.score(inputs), before.score(inputs), atol=1e-6)
    monkeypatch.setattr(compiled, "_cpu_features", lambda: ["another"])
    assert embedcomp.Scorer.open(path).engine.startswith("torch, since")


def test_nothing_is_built_for_what_the_engine_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = saved(dlrm(), tmp_path / "m")
    assert run(monkeypatch, "build", path) == 0
    assert "there is nothing to build" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_the_key_is_of_the_program_torch_and_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(sequences(), tmp_path / "m") / "1"
    key = compiled.cache_file(path)
    assert compiled.cache_file(path) == key
    monkeypatch.setattr(compiled, "_cpu_features", lambda: ["another"])
    assert compiled.cache_file(path) != key
