"""Grids that train in the trainer: killed, resumed, and stored as they were evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.storage.rows import StoredRows
from embedcomp.swapping.swap import freeze
from embedcomp.train.fit import Data, Report, fit
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from tests.train.rounded import rounded_model
from tests.train.test_train import Killed, without_seconds

SETTINGS = TrainSettings(
    epochs=2, batch_rows=512, checkpoint_rows=1024, embedding_l2=20.0, precision="float32"
)


def trained(data: Data, folder: Path, kill_after: int = -1) -> tuple[nn.Module, list[Any]]:
    model, steps = rounded_model(data.features), 0

    def watch(report: Report) -> None:
        nonlocal steps
        steps += report.valid is None
        if steps == kill_after:
            raise Killed

    history = fit(model, data, SETTINGS, folder, watch=watch)
    return model, [without_seconds(entry) for entry in history]


def test_a_killed_run_goes_on_with_its_grids_and_stores_what_it_evaluated(
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedcomp.storage.rows.LOOKED_UP", 3)  # codes are found anew now and then
    data = Data(synth_log, synth_features)
    whole, history = trained(data, tmp_path / "whole")
    for kill_after in (7, 25):
        with pytest.raises(Killed):
            trained(data, tmp_path / str(kill_after), kill_after)
        resumed, again = trained(data, tmp_path / str(kill_after))
        assert history == again
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name
    stored = [m for m in whole.modules() if isinstance(m, StoredRows) and m.moves is not None]
    assert len({type(one.kind) for one in stored}) == 5
    assert all(one.moves is not None and one.moves.any() for one in stored)
    best = max(history, key=lambda entry: entry["auc"])
    freeze(whole)
    found = quality(whole, synth_log, synth_features, synth_log.pieces("valid"))
    assert (found.auc, found.logloss) == (best["auc"], best["logloss"])
