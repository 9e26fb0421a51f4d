"""Every model of embedcomp can be scored without its code, by the compiled engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcomp import models
from embedcomp.artifact.source import ModelSource
from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.planning.planner import by_name
from embedcomp.scorer.by_torch import in_memory
from embedcomp.sensitivity.layers import find
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.swapping.swap import apply


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", models.names())
def test_the_engine_scores_as_the_model_does(
    name: str, synth_log: ClickLog, synth_features: Features
) -> None:
    model = ModelSource(model=name).build(synth_features, 1).eval()
    batch = next(iter(in_order(synth_log, synth_features, synth_log.pieces("test"), 50)))
    with torch.no_grad():
        wanted = model(batch.dense, batch.sparse).view(-1).sigmoid().numpy()
    runs = in_memory(model, synth_features)
    assert runs.work is not None, runs.description
    record = next(iter(synth_log.read(synth_log.pieces("test")[0]))).slice(0, 50)
    found = runs.score_columns(synth_features, record, None)
    assert wanted.std() > 0 and np.allclose(found, wanted, atol=1e-5)


def test_layers_of_bfloat16_are_scored_from_memory_too(
    synth_log: ClickLog, synth_features: Features
) -> None:
    model = ModelSource(model="dcnv2").build(synth_features, 1).eval()
    found = find(model, {})
    halved = apply(model, by_name(model, found, {"*": "half"}), found, Statistics())
    dtypes = {t.dtype for t in halved.state_dict().values()}
    assert torch.bfloat16 in dtypes
    runs = in_memory(halved, synth_features)
    assert runs.work is not None, runs.description
    record = next(iter(synth_log.read(synth_log.pieces("test")[0]))).slice(0, 50)
    batch = next(iter(in_order(synth_log, synth_features, synth_log.pieces("test"), 50)))
    with torch.no_grad():
        wanted = halved(batch.dense, batch.sparse).view(-1).sigmoid().numpy()
    scored = runs.score_columns(synth_features, record, None)
    assert np.allclose(scored, wanted, atol=1e-3)
