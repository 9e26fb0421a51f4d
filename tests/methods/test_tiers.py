"""Tables in tiers all the way: planned, compressed, tuned, saved, loaded and scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.recipes.settings import CompressSettings
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.tiers import Tiers
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import TrainSettings
from tests.artifacts import scored_alike

SOURCE = ModelSource(model="dcnv2", settings={"width": 16, "hidden": [8], "cross_layers": 1})
TUNE = TuneSettings(epochs=1, batch_rows=512, learning_rate=0.01, table_learning_rate=0.01)


CASES = [("frequency_tiers", 0), ("frequency_tiers", 1), ("trellis_coded", 1)]


@pytest.fixture(scope="module", params=CASES, ids=["untuned", "tuned", "trellis"])
def made(
    request: pytest.FixtureRequest,
    synth_log: ClickLog,
    synth_features: Features,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    method, epochs = request.param
    folder = tmp_path_factory.mktemp("tiers")
    none = TrainSettings(epochs=0)
    original = recipes.train(
        synth_log, synth_features, SOURCE.complete(), none, folder / "original"
    )
    settings = CompressSettings(
        budget="5x",
        methods=(method,),
        rest=("eora",),
        measure_rows=2000,
        tune=replace(TUNE, epochs=epochs),
    )
    measured = recipes.measure(original, synth_log, settings)
    plan = recipes.plan(original, measured, settings)
    return recipes.compress(original, synth_log, measured, plan, settings, folder / "small")


def in_tiers(made: Artifact) -> list[StoredRows]:
    stored = [m for m in made.model().modules() if isinstance(m, StoredRows)]
    return [rows for rows in stored if isinstance(rows.kind, Tiers)]


@pytest.mark.slow
def test_large_tables_are_in_tiers_and_as_large_as_planned(made: Artifact) -> None:
    assert made.plan is not None
    planned = [p for p in made.plan.tables if p.method in ("frequency_tiers", "trellis_coded")]
    assert planned and made.manifest.bytes["total"] == made.plan.bytes_after
    stored = [m for m in made.model().modules() if isinstance(getattr(m, "kind", None), Tiers)]
    assert len(stored) == len(planned)
    assert all(
        tiered.kind.bits_of_rows == tuple(sorted(tiered.kind.bits_of_rows)[::-1])
        for tiered in stored
    )


@pytest.mark.slow
def test_rows_that_are_gathered_are_those_of_the_whole(made: Artifact) -> None:
    for tiered in (
        m for m in made.model().modules() if isinstance(getattr(m, "kind", None), Tiers)
    ):
        ids = torch.randperm(tiered.rows, generator=torch.manual_seed(0)).repeat(2)
        assert torch.equal(tiered.gather(ids), tiered.to_float()[ids])
        frozen = tiered.to_float()
        tiered.thaw()
        assert torch.equal(tiered.to_float(), frozen)
        assert torch.equal(tiered.gather(ids), frozen[ids])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_scores_are_the_models(
    synth_log: ClickLog, made: Artifact, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scored_alike(synth_log, made, engine, monkeypatch).std() > 1e-6


@pytest.mark.parametrize("width", [0, 8])
def test_without_numbers_all_columns_of_a_tier_have_as_many_bits(width: int) -> None:
    """So many that a plan foresees how large codebooks are."""
    for kind in (Trellis((4, 10), (24, 8)), Tiered((4, 10), (3, 1))):
        if width or isinstance(kind, Tiered):
            grid = kind.empty(10, width)["grid"]
            assert grid.shape == (2, 3, width) and grid.dtype == torch.bfloat16
            assert grid[:, :2].eq(1).all()
            assert grid[:, 2].tolist() == [[3.0] * width, [1.0] * width]
