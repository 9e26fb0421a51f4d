"""Readers without an input: what is left of a layer whose tables are all constants is its bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BudgetTooSmall
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.methods import low_rank
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.layer import Layer, LinearSpec, LinearStatistics
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.train.settings import TrainSettings
from tests.artifacts import scored_alike

FIELDS = ("a", "b", "c")
ROWS = 300


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """A log of single-valued categorical features alone."""
    folder = tmp_path_factory.mktemp("single")
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        columns = {name: rng.integers(0, 20, ROWS).astype(str) for name in FIELDS}
        clicked = pa.array(rng.integers(0, 2, ROWS).astype(np.int8))
        pq.write_table(pa.table({"label": clicked, **columns}), folder / f"{split}.parquet")
    splits = "[splits]\n" + "".join(f'{s} = "{s}.parquet"\n' for s in ("train", "valid", "test"))
    fields = "".join(f"{name} = {{}}\n" for name in FIELDS)
    (folder / "schema.toml").write_text(f'label = "label"\n{splits}[categorical]\n{fields}')
    return ClickLog(str(folder))


@pytest.fixture(scope="module")
def original(log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    features = Features.from_counts(log, count(log, log.pieces("train")), 1)
    source = ModelSource(model="deepfm", settings={"width": 4, "hidden": (12, 8)})
    none, out = TrainSettings(epochs=0), tmp_path_factory.mktemp("original") / "m"
    return recipes.train(log, features, source.complete(), none, out)


def smallest(log: ClickLog, original: Artifact, methods: tuple[str, ...], out: Path) -> Artifact:
    """The smallest model that these methods make."""
    settings = CompressSettings(budget="1B", methods=methods)
    measured = recipes.measure(original, log, settings)
    planning = recipes.Planning(original, measured)
    with pytest.raises(BudgetTooSmall) as told:
        planning.plan(settings)
    settings = CompressSettings(budget=f"{told.value.smallest}B", methods=methods)
    plan = planning.plan(settings)
    return recipes.compress(original, log, measured, plan, settings, out)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["keep", "dense_int8", "row_int4", "weight_clustering"])
def test_a_reader_of_constants_is_planned_saved_and_scored(
    log: ClickLog,
    original: Artifact,
    other: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = smallest(log, original, ("low_rank", other), tmp_path / "small")
    reader = made.model().get_submodule("deep_in.linear")
    assert reader.in_features == 0
    for engine in ("compiled", "torch"):
        scored_alike(log, made, engine, monkeypatch)  # as the model in memory


def test_the_loss_of_a_layer_without_inputs_is_that_of_its_bias() -> None:
    generator = torch.manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.float64)
    statistics = LinearStatistics(nothing, nothing.outer(nothing), root @ root.T)
    spec = LinearSpec(name="l", inputs=0, outputs=5, bias=True)
    bias = torch.randn(5, generator=generator)
    layer = Layer(spec, torch.zeros(5, 0), bias, statistics)
    served = low_rank.compress(layer, low_rank.Settings(rank=0, storage="float16"))
    off = (served(torch.zeros(1, 0))[0] - bias).double()
    assert float(off.abs().max()) > 0
    assert predicted_loss(layer, served) == pytest.approx(float(off @ root @ root.T @ off) / 2)
