"""What scores is said, and so is what it does otherwise than it was asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import embedcomp
from embedcomp.artifact.artifact import Artifact
from embedcomp.engine.description import COMPILED, TORCH
from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.recipes.inspect import describe
from embedcomp.scorer.portable import Portable
from tests.cases import Case, dlrm, sequences

FORMAT_2 = Path(__file__).parent.parent / "data/format_2"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tree without the compiled engine, in a process that has not looked for it yet."""
    monkeypatch.setattr(native, "file", lambda: None)
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def rows_of(scorer: embedcomp.Scorer, count: int) -> pa.RecordBatch:
    types = {name: scorer.features.column_type(name) for name in scorer.features.names}
    return pa.RecordBatch.from_pydict({name: pa.nulls(count, t) for name, t in types.items()})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def saved(case: Case, folder: Path, precision: str = "float32") -> Artifact:
    case.model.eval()
    return embedcomp.save(
        case.model, folder, score=case.score, example=case.inputs(1), precision=precision
    )


def test_an_engine_that_was_not_built_is_told_once_with_the_way_out(
    no_engine: None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        scorer = embedcomp.Scorer.open(FORMAT_2)
        assert len(scorer.score(rows_of(scorer, 2))) == 2
    (said,) = warnings(caplog)
    assert said.startswith("the compiled engine was not built; install a C++ compiler")
    assert said.endswith("run pip install again; until then torch scores")


def test_what_scores_is_described_with_the_reason(no_engine: None) -> None:
    found = embedcomp.Scorer.open(FORMAT_2).description
    assert (found.name, found.precision, found.threads) == (TORCH, "float32", 1)
    assert found.reason == str(native.NotBuilt())
    assert describe(Artifact.open(FORMAT_2))["scored_by"] == f"torch, since {native.NotBuilt()}"


def test_the_compiled_engine_needs_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    found = embedcomp.Scorer.open(FORMAT_2, threads=3).description
    assert (found.name, found.precision, found.threads) == (COMPILED, "float32", 3)
    assert (found.reason, found.lost, warnings(caplog)) == ("", "", [])
    assert describe(Artifact.open(FORMAT_2))["scored_by"] == "compiled engine, float32"


@pytest.mark.parametrize("threads", [1, 3])
def test_torch_scores_on_as_many_threads_as_it_is_given(
    no_engine: None, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    seen: list[int] = []
    logits = Portable.logits

    def watched(self: Portable, inputs: object) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return logits(self, inputs)

    monkeypatch.setattr(Portable, "logits", watched)
    scorer = embedcomp.Scorer.open(FORMAT_2, threads=threads)
    torch.set_num_threads(2)
    try:
        scorer.score(rows_of(scorer, 4))
        assert torch.get_num_threads() == 2  # the caller's own
    finally:
        torch.set_num_threads(1)
    assert seen == [threads]


def test_an_artifact_saved_for_int8_is_not_scored_in_float32_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    case = dlrm()
    made = saved(case, tmp_path / "m", "int8")
    assert embedcomp.Scorer(made).precision == "int8" and not warnings(caplog)
    request.getfixturevalue("no_engine")
    scorer = embedcomp.Scorer(made)
    assert scorer.precision == "float32"
    said = f"{made.folder} is scored by torch, since {native.NotBuilt()}"
    said += "; products are float32 and not int8, as it was saved"
    assert said in warnings(caplog)
    with torch.no_grad():
        wanted = torch.sigmoid(case.score(case.model, case.inputs(2))).view(-1).numpy()
    np.testing.assert_allclose(scorer.score(case.inputs(2)), wanted, atol=3e-6)
    with pytest.raises(BadSettings, match="is scored in float32 alone, by torch"):
        embedcomp.Scorer(made, precision="int8")


@pytest.mark.slow
def test_a_model_that_the_engine_cannot_run_says_so_when_it_is_saved_for_int8(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(sequences(), tmp_path / "m", "int8")
    (said,) = warnings(caplog)
    assert "is scored by torch, since" in said
    assert said.endswith("products are float32 and not int8, as it was saved")


def test_layers_stored_as_bytes_are_said_to_be_multiplied_in_float32_by_torch(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = dlrm()
    embedcomp.swap_(case.model, {"*over_arch.model.1": "dense_int8"})
    made = saved(case, tmp_path / "m")
    assert embedcomp.Scorer(made).description.saved_for == ""
    request.getfixturevalue("no_engine")
    assert embedcomp.Scorer(made).description.saved_for == "int8"
