"""The proof that travels with an artifact: what it records, and that it is checked again."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.proof import MOST_ROWS, Figures, Proof, chosen
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BadArtifact, BadLog
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features, IdFeature
from embedcomp.log.vocabulary import Vocabulary
from embedcomp.recipes.inspect import describe, render
from embedcomp.recipes.settings import CompressSettings
from embedcomp.recipes.verify import verify
from embedcomp.scorer.scorer import Scorer
from embedcomp.support.metrics import SCORES, by_score
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from tests.cli.test_commands import run

SOURCE = ModelSource(model="deepfm", settings={"width": 4, "hidden": [8]}).complete()
QUICK = ("row_int8", "half")
TUNED = CompressSettings(
    budget="60%", methods=QUICK, tune=TuneSettings(epochs=1, batch_rows=2048, seed=5)
)


@pytest.fixture(scope="module")
def original(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    out = tmp_path_factory.mktemp("original") / "model"
    settings = TrainSettings(epochs=1, batch_rows=1024, seed=3)
    return recipes.train(synth_log, synth_features, SOURCE, settings, out)


def compressed(
    original: Artifact, log: ClickLog, out: Path, settings: CompressSettings = TUNED, **more: Any
) -> Artifact:
    measured = recipes.measure(original, log, settings)
    plan = recipes.plan(original, measured, settings)
    return recipes.compress(original, log, measured, plan, settings, out, **more)


@pytest.fixture(scope="module")
def small(
    original: Artifact, synth_log: ClickLog, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """A tuned model, with its control beside it."""
    folder = tmp_path_factory.mktemp("small")
    control = recipes.control(original, synth_log, TUNED, folder / "control")
    return compressed(original, synth_log, folder / "small", control=control)


def by_sklearn(made: Artifact, log: ClickLog) -> Figures:
    """Quality of the served artifact over the whole validation split."""
    rows = next(iter(log.read(log.pieces("valid")[0])))
    scores, labels = Scorer(made).score(rows), rows[log.schema.label].to_numpy()
    return Figures(
        auc=roc_auc_score(labels, scores),
        logloss=log_loss(labels, scores.astype(np.float64)),
        calibration=float(scores.sum() / labels.sum()),
        rows=len(labels),
    )


def near(found: Figures | None, wanted: Figures) -> bool:
    assert found is not None and found.rows == wanted.rows
    pairs = [(found.auc, wanted.auc), (found.logloss, wanted.logloss)]
    pairs.append((found.calibration, wanted.calibration))
    return all(one == pytest.approx(other, abs=1e-5) for one, other in pairs)


def test_a_trained_model_records_its_quality_and_its_seed(
    original: Artifact, synth_log: ClickLog
) -> None:
    found = original.proof
    assert found is not None and near(found.model, by_sklearn(original, synth_log))
    assert (found.original, found.control, found.seeds) == (None, None, {"train": 3})


@pytest.mark.slow
def test_a_tuned_model_records_itself_its_original_its_control_and_all_seeds(
    original: Artifact, small: Artifact, synth_log: ClickLog
) -> None:
    control = Artifact.open(small.folder.parents[1] / "control")
    found = small.proof
    assert found is not None
    for figures, made in ((found.model, small), (found.original, original)):
        assert near(figures, by_sklearn(made, synth_log))
    assert near(found.control, by_sklearn(control, synth_log))
    assert found.model != found.original != found.control != found.model
    assert found.seeds == {"train": 3, "tune": 5}
    assert control.proof is not None and control.proof.seeds == {"train": 3, "control": 5}


@pytest.mark.slow
def test_an_untuned_model_is_measured_as_well(
    original: Artifact, synth_log: ClickLog, tmp_path: Path
) -> None:
    settings = CompressSettings(budget="60%", methods=QUICK)
    made = compressed(original, synth_log, tmp_path / "m", settings)
    found = made.proof
    assert found is not None and near(found.model, by_sklearn(made, synth_log))
    assert found.original == original.proof.model and found.seeds == {"train": 3}  # type: ignore[union-attr]
    state = original.model().state_dict()
    torch.save(state, tmp_path / "same.pt")
    again, _ = recipes.recompress(
        made, tmp_path / "same.pt", synth_log, settings, tmp_path / "again"
    )
    assert again.proof is not None and again.proof.seeds == {}  # its weights came from a file
    assert (again.proof.model, again.proof.original) == (found.model, found.original)


def test_an_original_without_a_record_is_measured_for_the_proof_of_its_compressed_model(
    original: Artifact, synth_log: ClickLog, tmp_path: Path
) -> None:
    old = rewritten(original, tmp_path / "old", metrics={"valid": {"auc": 0.1, "logloss": 9.0}})
    assert old.proof is None
    found = recipes.figures(old, synth_log)
    assert found == original.proof.model  # type: ignore[union-attr]
    other = rewritten(original, tmp_path / "other")
    lied = other.manifest.metrics["valid"] | {"auc": 0.1, "log": "of another log"}
    assert (
        recipes.figures(rewritten(other, tmp_path / "lied", metrics={"valid": lied}), synth_log)
        == found
    )


def rewritten(made: Artifact, folder: Path, **changes: Any) -> Artifact:
    """A copy with another manifest."""
    shutil.copytree(made.folder, folder / "1")
    file = folder / "1/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return Artifact.open(folder)


def split_log(log: ClickLog, folder: Path, *, valid: bool) -> ClickLog:
    """The log with its validation split in row groups of 100 rows, or without one."""
    folder.mkdir()
    for split in ("train", "valid", "test"):
        rows = pq.read_table(Path(log.path) / f"{split}.parquet")
        pq.write_table(rows, folder / f"{split}.parquet", row_group_size=100)
    schema = (Path(log.path) / "schema.toml").read_text()
    lines = [line for line in schema.splitlines() if valid or not line.startswith("valid")]
    (folder / "schema.toml").write_text("\n".join(lines) + "\n")
    return ClickLog(str(folder))


@pytest.mark.slow
def test_a_log_without_a_validation_split_is_said_to_prove_nothing(
    original: Artifact, synth_log: ClickLog, tmp_path: Path
) -> None:
    log = split_log(synth_log, tmp_path / "log", valid=False)
    made = compressed(original, log, tmp_path / "m", CompressSettings(budget="60%", methods=QUICK))
    found = made.proof
    assert found is not None and found.model is None and found.seeds == {"train": 3}
    assert found.reason == "the log has no split 'valid'"
    assert "quality not measured: the log has no split 'valid'" in recipes.summary_line(made)
    with pytest.raises(BadArtifact, match=r"has no record of its quality \(the log has no split"):
        verify(made, synth_log)
    with pytest.raises(BadLog, match="has no split 'valid'"):
        verify(original, log)


def test_the_first_rows_of_each_piece_are_scored_up_to_a_bound(
    original: Artifact, synth_log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcomp.recipes.save.MOST_ROWS", 240)
    log = split_log(synth_log, tmp_path / "log", valid=True)
    pieces = log.pieces("valid")
    assert len(pieces) == 12
    found = recipes.on_validation(original.model(), log, original.features)
    wanted = quality(original.model(), log, original.features, pieces, 20)
    assert found is not None and found.to_dict() == pytest.approx(wanted.to_dict(), rel=1e-6)
    assert wanted.rows == 240
    record = Proof(
        model=Figures.of(found), log=log.fingerprint(["valid"]), most_rows=240
    ).to_metrics()
    again = verify(rewritten(original, tmp_path / "m", metrics=record), log)
    assert again.holds and again.found.rows == 240


def test_a_proof_comes_back_from_its_manifest() -> None:
    figures = Figures(auc=0.75, logloss=0.5, calibration=None, rows=7)
    of = {"original": figures, "seeds": {"train": 1}, "log": "abc", "most_rows": 9}
    of |= {"scores": (0.25, 0.75), "unknown_ids": {"city": 0.5}}
    for model, reason in ((figures, ""), (None, "none")):
        wanted = Proof(model=model, reason=reason, **of)  # type: ignore[arg-type]
        written = json.loads(json.dumps(wanted.to_metrics()))
        assert Proof.from_metrics(written) == wanted
    assert Proof.from_metrics({}) is None


def test_a_proof_has_the_scores_and_the_unknown_ids_that_a_server_should_see(
    original: Artifact, synth_log: ClickLog
) -> None:
    proof, features = original.proof, original.features
    scores = Scorer.open(original.folder)
    assert proof is not None
    rows = [
        batch.slice(0, most)
        for piece, most in chosen(synth_log, "valid", MOST_ROWS)
        for batch in synth_log.read(piece)
    ]
    found = by_score(np.concatenate([scores.score(batch) for batch in rows]))
    np.testing.assert_allclose(proof.scores, found / found.sum(), atol=2 / found.sum())
    assert len(proof.scores) == len(SCORES) and sum(share > 0.05 for share in proof.scores) > 3
    for one in features.ids:
        counts = one.vocabulary.counts
        ids = counts.sum() - counts[one.vocabulary.null_row]
        unknown = counts[one.vocabulary.unknown_row] / ids
        assert proof.unknown_ids[one.name] == pytest.approx(unknown, abs=1e-6)


def test_a_share_of_unknown_ids_is_of_those_that_are_no_nulls() -> None:
    counts = np.array([3, 90, 5, 2], np.int64)  # unknown, null, and two known ids
    vocabulary = Vocabulary(pa.array([7, 8]), counts)
    features = Features((IdFeature("city", "user", False, vocabulary),), ())
    found = Proof.of(cast(ClickLog, None), None, features, seeds={})
    assert found.unknown_ids == {"city": 0.3}


def test_figures_of_one_kind_of_label_have_no_auc() -> None:
    from embedcomp.support.metrics import Quality

    found = Quality()
    found.add(np.zeros(4, np.float32), np.zeros(4, np.float32))
    assert Figures.of(found) == Figures(auc=None, logloss=np.log(2), calibration=None, rows=4)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["original", "small"])
def test_a_proof_is_checked_again_by_what_serves(
    which: str, synth_log: ClickLog, request: pytest.FixtureRequest
) -> None:
    made: Artifact = request.getfixturevalue(which)
    found = verify(made, synth_log)
    assert found.holds and found.same_rows and found.scored_by == "compiled engine, float32"
    assert near(found.found, by_sklearn(made, synth_log))
    assert f"scores as recorded on {found.found.rows:,} rows of the valid split" in str(found)


@pytest.mark.parametrize("name", ["auc", "logloss", "calibration"])
def test_a_figure_that_differs_is_told(
    original: Artifact, synth_log: ClickLog, tmp_path: Path, name: str
) -> None:
    valid = dict(original.manifest.metrics["valid"])
    valid[name] += 3e-5
    made = rewritten(original, tmp_path / "m", metrics={"valid": valid})
    found = verify(made, synth_log)
    assert not found.holds and found.same_rows
    assert found.differences[name] == pytest.approx(-3e-5, abs=2e-6)
    assert "does not score as recorded" in str(found) and "more than 1e-05" in str(found)
    assert verify(made, synth_log, tolerance=1e-4).holds


def equal_scores(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """Have many rows of one score each, that is off by at most `error` of it."""
    score, rng = Scorer.score, np.random.default_rng(0)

    def rounded(self: Scorer, rows: Any) -> np.ndarray:
        scores = score(self, rows).round(2)
        return scores * (1 + error * rng.uniform(-1, 1, len(scores)).astype(np.float32))

    monkeypatch.setattr(Scorer, "score", rounded)


def test_ties_that_rounding_breaks_are_no_difference(
    original: Artifact, synth_log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        equal_scores(patch, 0.0)
        valid = original.manifest.metrics["valid"] | asdict(verify(original, synth_log).found)
    made = rewritten(original, tmp_path / "m", metrics={"valid": valid})
    bad = [valid | {"auc": valid["auc"] + off} for off in (-0.02, 0.02)]
    wrong = [
        rewritten(original, tmp_path / str(i), metrics={"valid": v}) for i, v in enumerate(bad)
    ]
    with monkeypatch.context() as patch:
        equal_scores(patch, 1e-6)
        found = verify(made, synth_log)
        assert abs(found.differences["auc"] or 0) > 1e-4 and found.holds
        assert "by rows whose scores are equal but for rounding" in str(found)
        low, high = found.to_dict()["auc_range"]
        assert valid["auc"] - 0.02 < low < valid["auc"] < high < valid["auc"] + 0.02
        for one in wrong:
            assert not verify(one, synth_log).holds
    with monkeypatch.context() as patch:
        equal_scores(patch, 2e-3)  # which is no rounding
        assert verify(made, synth_log).unexplained["auc"] > 1e-4


def test_scores_near_1_are_known_no_better_than_float32_holds_them(
    original: Artifact, synth_log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are 1 but for a few steps of float32; one step more or less wins many of the ties."""
    steps = np.random.default_rng(0).integers(3, 400, 10_000)

    def nearly_1(more: int) -> Any:
        def score(self: Scorer, rows: Any) -> np.ndarray:
            clicked = rows[synth_log.schema.label].to_numpy() > 0.5
            found = steps[: len(clicked)] - more * np.where(clicked, 1, -1)
            return (1 - found * 2.0**-24).astype(np.float32)

        return score

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", nearly_1(0))
        valid = original.manifest.metrics["valid"] | asdict(verify(original, synth_log).found)
    made = rewritten(original, tmp_path / "m", metrics={"valid": valid})
    monkeypatch.setattr(Scorer, "score", nearly_1(1))
    found = verify(made, synth_log)
    assert abs(found.differences["auc"] or 0) > 1e-4 and found.unexplained["auc"] == 0


def test_another_log_proves_nothing_even_if_figures_agree(
    original: Artifact, synth_log: ClickLog, tmp_path: Path
) -> None:
    found = verify(original, split_log(synth_log, tmp_path / "log", valid=True))
    assert max(abs(d) for d in found.differences.values() if d is not None) < 1e-5
    assert not found.same_rows and not found.holds
    assert "is not the one of the record" in str(found)


def test_a_copy_of_the_log_elsewhere_is_the_same_log(
    original: Artifact, synth_log: ClickLog, tmp_path: Path
) -> None:
    shutil.copytree(synth_log.path, tmp_path / "log")
    assert verify(original, ClickLog(str(tmp_path / "log"))).holds


@pytest.mark.slow
def test_verify_ends_with_0_or_1_and_a_table_or_json(
    original: Artifact,
    small: Artifact,
    synth_log: ClickLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "verify", small.folder, "--log", synth_log.path) == 0
    told = " ".join(capsys.readouterr().out.split())
    for part in ("original, recorded", "control, recorded", "this model, now", "seeds: train 3"):
        assert part in told
    valid = original.manifest.metrics["valid"] | {"auc": 0.99}
    bad = rewritten(original, tmp_path / "m", metrics={"valid": valid})
    assert run(monkeypatch, "verify", bad.folder, "--log", synth_log.path, "--json", "-") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is False and found["recorded"]["model"]["auc"] == 0.99
    assert found["measured"]["rows"] == 1200 and found["differences"]["auc"] < -0.1
    known = Path(__file__).parent / "data/format_2"
    assert run(monkeypatch, "verify", known, "--log", synth_log.path) == 2
    assert "has no record of its quality; make it again" in capsys.readouterr().err


def test_inspect_tells_the_proof_or_what_older_artifacts_have(
    original: Artifact, small: Artifact, tmp_path: Path
) -> None:
    told = [str(part) for part in render(describe(small), small)]
    assert small.proof is not None
    assert str(small.proof) in told and "control AUC" in str(small.proof)
    old = Artifact.open(Path(__file__).parent / "data/format_2")
    assert "quality not recorded" in [str(part) for part in render(describe(old), old)]
    old = rewritten(original, tmp_path / "m", metrics={"valid": {"auc": 0.1, "logloss": 9.0}})
    told = " ".join(str(part) for part in render(describe(old), old))
    assert "valid AUC 0.10000, log loss 9.00000, with nothing to check them by" in told


class Branches(nn.Module):
    """A model that torch.export cannot follow."""

    def __init__(self, features: Features):
        super().__init__()
        from embedcomp.models._layers import embedding_bags

        self.bags = embedding_bags(features, 4)
        self.out = nn.Linear(4 * len(features.ids) + len(features.dense), 1)

    def forward(self, dense: torch.Tensor, sparse: Any) -> torch.Tensor:
        x = torch.cat([self.bags(sparse).values(), dense], 1)
        return self.out(x * 2 if x.sum() > 0 else x)


def test_a_model_that_cannot_be_exported_says_that_it_needs_its_code(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    source = ModelSource(model="tests.test_proof:Branches")
    settings = TrainSettings(epochs=0)
    made = recipes.train(synth_log, synth_features, source, settings, tmp_path / "m")
    reason = made.manifest.needs_code
    assert made.standalone is None and "torch.export cannot follow the model at" in reason
    assert recipes.summary_line(made).endswith(f"; {recipes.ONLY_BY_CODE}: {reason}")
    assert recipes.summary(made)["needs_code"] == reason
    assert describe(made)["scored_by"] == f"the model's own code, since {reason}"
    found = Scorer(made).description
    assert found.name == "the model's own code" and "cannot follow" in found.reason
    assert verify(made, synth_log).holds
