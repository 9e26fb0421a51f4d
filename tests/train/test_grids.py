"""Grids that train in the trainer: killed, resumed, and stored as they were evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.storage.rows import StoredRows
from embedcomp.swapping.swap import freeze
from embedcomp.train.fit import Data
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from tests.train.killed import trained_in_spite_of_kills
from tests.train.rounded import rounded_model

SETTINGS = TrainSettings(
    epochs=2, batch_rows=512, checkpoint_rows=1024, embedding_l2=20.0, precision="float32"
)


@pytest.mark.slow
@pytest.mark.parametrize("floats", [0.0, 0.5])
def test_a_killed_run_goes_on_with_its_grids_and_stores_what_it_evaluated(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    floats: float,
) -> None:
    monkeypatch.setattr("embedcomp.storage.rows.LOOKED_UP", 3)  # codes are found anew now and then
    data = Data(synth_log, synth_features)
    whole, history = trained_in_spite_of_kills(
        lambda: rounded_model(synth_features, floats), data, SETTINGS, tmp_path, (7, 25)
    )
    stored = [m for m in whole.modules() if isinstance(m, StoredRows) and m.moves is not None]
    assert len({type(one.kind) for one in stored}) == 5
    assert all(one.moves is not None and one.moves.any() for one in stored)
    settled = [entry for entry in history if entry.get("settled", True)]
    assert (len(settled) < len(history)) is bool(floats)
    best = max(settled, key=lambda entry: entry["auc"])
    freeze(whole)
    found = quality(whole, synth_log, synth_features, synth_log.pieces("valid"))
    assert (found.auc, found.logloss) == (best["auc"], best["logloss"])
