"""Writes the artifact of today's format that must load for ever: run once a format, then commit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from embedcomp import recipes
from embedcomp.artifact.artifact import FORMAT, Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.log.synth import synth
from embedcomp.recipes.settings import CompressSettings
from embedcomp.scorer.scorer import Scorer
from embedcomp.train.settings import TrainSettings

HERE = Path(__file__).parent
ROWS = 20


def make(scratch: Path) -> None:
    synth(scratch / "log", 1000)
    log = ClickLog(str(scratch / "log"))
    features = Features.from_counts(log, count(log, log.pieces("train")), 3)
    source = ModelSource(model="dcnv2", settings={"width": 4, "hidden": [8, 4]}).complete()
    settings = TrainSettings(epochs=2, batch_rows=64, learning_rate=0.02)
    original = recipes.train(log, features, source, settings, scratch / "model")
    settings_of = CompressSettings(budget="4x")
    measured = recipes.measure(original, log, settings_of)
    plan = recipes.plan(original, measured, settings_of)
    out = HERE / f"format_{FORMAT}"
    recipes.compress(original, log, measured, plan, settings_of, out)
    rows = next(iter(log.read(log.pieces("test")[0]))).slice(0, ROWS)
    scores = Scorer(Artifact.open(out)).score(rows)
    known = {"rows": rows.to_pylist(), "scores": [float(score) for score in scores]}
    (out / "known.json").write_text(json.dumps(known, indent=0) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
