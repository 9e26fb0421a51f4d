"""What tests of artifacts share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcomp.artifact.artifact import Artifact
from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.scorer.scorer import Scorer


def scored_alike(
    log: ClickLog, made: Artifact, engine: str, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """The model's probabilities of some rows, which an engine ("compiled" or "torch") gives too."""
    if engine == "torch":
        monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    scorer = Scorer.open(made.folder)
    assert scorer.engine.startswith(engine)
    piece = log.pieces("test")[0]
    rows = next(log.read(piece)).slice(0, 64)
    batch = next(iter(in_order(log, made.features, [piece], 64)))
    with torch.no_grad():
        wanted = torch.sigmoid(made.model()(batch.dense, batch.sparse)).numpy()
    np.testing.assert_allclose(scorer.score(rows), wanted, rtol=0, atol=1e-6)
    return wanted
