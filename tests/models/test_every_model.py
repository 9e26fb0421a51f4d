"""Every model of the folder is compressed, exported and scored without its code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from embedcomp import models, recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.recipes.settings import CompressSettings
from embedcomp.scorer.scorer import Scorer
from embedcomp.train.settings import TrainSettings

ROWS = 60
SMALL = {"width": 8, "hidden": (32, 16)}
SETTINGS = [
    *((name, {}) for name in models.names()),
    ("fibinet", {"bilinear": "all"}),
    ("fibinet", {"bilinear": "each"}),
    ("autoint", {"heads": 1, "attention_layers": 3, "attention_width": 8}),
]


@pytest.fixture(
    scope="module", params=SETTINGS, ids=lambda p: "_".join([p[0], *map(str, p[1].values())])
)
def original(
    request: pytest.FixtureRequest,
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    """A model with tables of some size, as if it had been trained for long."""
    name, settings = request.param
    tmp_path = tmp_path_factory.mktemp(name)
    source = ModelSource(model=name, settings=SMALL | settings).complete()
    model = source.build(synth_features)
    for module in model.modules():
        if isinstance(module, torch.nn.EmbeddingBag):
            torch.nn.init.normal_(module.weight, std=0.3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    none = TrainSettings(epochs=0)
    out, start = tmp_path / "original", tmp_path / "w.safetensors"
    return recipes.train(synth_log, synth_features, source, none, out, start=start)


@pytest.fixture(params=["svd", pytest.param("low_rank", marks=pytest.mark.matrix)])
def compressed(
    request: pytest.FixtureRequest, original: Artifact, synth_log: ClickLog, tmp_path: Path
) -> Artifact:
    names = ("keep", request.param, "row_int8")
    settings = CompressSettings(budget="5x", methods=names, measure_rows=2000)
    measured = recipes.measure(original, synth_log, settings)
    plan = recipes.plan(original, measured, settings)
    return recipes.compress(original, synth_log, measured, plan, settings, tmp_path / "small")


def rows_of(log: ClickLog) -> pa.RecordBatch:
    return next(log.read(log.pieces("test")[0])).slice(0, ROWS)


def probabilities(made: Artifact, log: ClickLog) -> np.ndarray:
    batch = next(iter(in_order(log, made.features, log.pieces("test"), ROWS)))
    with torch.no_grad():
        return torch.sigmoid(made.model().eval()(batch.dense, batch.sparse)).numpy()


def same_in_parts(scorer: Scorer, log: ClickLog, wanted: np.ndarray) -> None:
    assert wanted.std() > 0.01  # so that scores of the wrong rows would be seen
    rows = rows_of(log)
    for first, count in ((0, ROWS), (3, 1), (7, 2), (11, 49), (5, 0)):
        found = scorer.score(rows.slice(first, count))
        np.testing.assert_allclose(found, wanted[first : first + count], rtol=0, atol=1e-6)


@pytest.mark.sampled(4)
def test_the_engine_scores_as_the_model_does(original: Artifact, synth_log: ClickLog) -> None:
    scorer = Scorer(original)
    assert scorer.engine.startswith("compiled engine")
    same_in_parts(scorer, synth_log, probabilities(original, synth_log))


@pytest.mark.sampled(5)
def test_compressed_it_is_as_small_as_asked_and_scores_as_the_model_does(
    original: Artifact,
    compressed: Artifact,
    synth_log: ClickLog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [made.manifest.bytes["total"] for made in (compressed, original)]
    assert sizes[0] <= sizes[1] / 5
    wanted = probabilities(compressed, synth_log)
    assert np.corrcoef(wanted, probabilities(original, synth_log))[0, 1] > 0.9
    same_in_parts(Scorer(compressed), synth_log, wanted)
    monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    scorer = Scorer(compressed)
    assert scorer.engine.startswith("torch")
    same_in_parts(scorer, synth_log, wanted)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_other_products_are_close(original: Artifact, synth_log: ClickLog, precision: str) -> None:
    found = Scorer(original, precision=precision).score(rows_of(synth_log))
    np.testing.assert_allclose(found, probabilities(original, synth_log), rtol=0, atol=0.03)


@pytest.mark.slow
def test_one_user_with_many_items_scores_as_the_rows_written_out(
    original: Artifact, synth_log: ClickLog
) -> None:
    scorer, rows = Scorer(original), rows_of(synth_log)
    user_names = original.features.user.names
    items, user = rows.drop_columns(user_names), rows.slice(3, 1).select(user_names)
    written_out = {name: pa.concat_arrays([user[name]] * ROWS) for name in user_names}
    whole = pa.RecordBatch.from_pydict(written_out | {n: items[n] for n in items.schema.names})
    assert np.array_equal(scorer.score(items, user), scorer.score(whole))


@pytest.mark.parametrize("name", models.names())
def test_a_log_may_have_no_dense_features(
    synth_features: Features, name: str, synth_log: ClickLog
) -> None:
    few = replace(synth_features, ids=synth_features.ids[-2:], dense=())  # the last is a bag
    batch = next(iter(in_order(synth_log, few, synth_log.pieces("test"), ROWS)))
    file = models.get(name)
    model = file.build(few, file.Settings(**SMALL))
    logits = model(batch.dense, batch.sparse)
    assert batch.dense.shape == (ROWS, 0) and logits.shape == (ROWS,)
    assert torch.isfinite(logits).all()
