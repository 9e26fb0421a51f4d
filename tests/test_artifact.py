"""Artifacts: what is loaded is what was saved, and half a version is never seen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from embedcomp import recipes
from embedcomp.artifact import artifact
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BadArtifact, BadRequest, BadSettings, LimitsTooSmall
from embedcomp.log.batches import in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.modules.sizes import model_bytes
from embedcomp.recipes import measuring
from embedcomp.recipes.settings import CompressSettings
from embedcomp.scorer.scorer import Scorer
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.files import replacing
from embedcomp.swapping import swap
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings
from tests.small import assert_same_sums

matrix = pytest.mark.matrix
FEW = ("row_int4", "half", "svd")
SOURCE = ModelSource(model="dcnv2", settings={"width": 8, "hidden": [32, 16]}).complete()


@pytest.fixture(scope="module")
def original(
    synth_log: ClickLog, synth_features: Features, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    out = tmp_path_factory.mktemp("original") / "model"
    settings = TrainSettings(epochs=2, batch_rows=512, learning_rate=5e-3)
    return recipes.train(synth_log, synth_features, SOURCE, settings, out)


@pytest.fixture(scope="module")
def measured(synth_log: ClickLog, original: Artifact) -> Statistics:
    return recipes.measure(original, synth_log, CompressSettings(budget="3x"))


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 3])
def test_statistics_are_the_same_on_any_number_of_cores(
    cores: int,
    synth_log: ClickLog,
    original: Artifact,
    measured: Statistics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "cores", lambda: cores)
    found = recipes.measure(original, synth_log, CompressSettings(budget="3x"))
    assert_same_sums(found, measured)


@pytest.mark.slow
def test_as_many_rows_are_measured_and_held_out_as_is_said(
    original: Artifact, synth_log: ClickLog
) -> None:
    settings = CompressSettings(budget="3x", measure_rows=1500, held_rows=400)
    assert recipes.measure(original, synth_log, settings).samples == pytest.approx(1500, abs=5)
    assert len(recipes.held_out(original, synth_log, settings)) == pytest.approx(400, abs=5)


@pytest.mark.slow
def test_a_model_like_another_has_its_tensors(original: Artifact) -> None:
    model = original.model()
    twin = original.model(model)
    shared = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in shared)
    assert len(list(model.parameters())) > 5 and twin is not model and not twin.training


@pytest.fixture(scope="module")
def planning(original: Artifact, measured: Statistics) -> recipes.Planning:
    return recipes.Planning(original, measured)


def requests(log: ClickLog) -> Iterator[pa.RecordBatch]:
    for piece in log.pieces("test"):
        yield from log.read(piece)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "methods"),
    [("3x", FEW), ("10x", FEW), *(pytest.param(b, (), marks=matrix) for b in ("3x", "10x"))],
)
def test_the_artifact_scores_as_the_compressed_model_in_memory(
    synth_log: ClickLog,
    original: Artifact,
    measured: Statistics,
    planning: recipes.Planning,
    tmp_path: Path,
    budget: str,
    methods: tuple[str, ...],
) -> None:
    settings = CompressSettings(budget=budget, **({"methods": methods} if methods else {}))
    plan = planning.plan(settings)
    made = recipes.compress(original, synth_log, measured, plan, settings, tmp_path / "small")
    model = original.model()
    wanted = swap.apply(model, made.plan, recipes.layers_of(original, model), measured).eval()
    assert [p.method for p in made.plan.layers] == [p.method for p in plan.layers]
    assert made.plan.outcome.shift != 0
    assert made.manifest.bytes == model_bytes(wanted)
    found = Artifact.open(tmp_path / "small").model()
    with torch.no_grad():
        for batch in in_order(synth_log, original.features, synth_log.pieces("test"), 512):
            assert torch.equal(found(batch.dense, batch.sparse), wanted(batch.dense, batch.sparse))


@pytest.mark.slow
def test_a_tuned_model_is_served_as_it_was_tuned(
    synth_log: ClickLog, original: Artifact, tmp_path: Path
) -> None:
    settings = CompressSettings(
        budget="8x",
        methods=("low_rank", "column_quantized", "row_int8", "half"),
        tune=TuneSettings(epochs=1, batch_rows=512),
    )
    measured = recipes.measure(original, synth_log, settings)
    plan = recipes.plan(original, measured, settings)
    made = recipes.compress(original, synth_log, measured, plan, settings, tmp_path / "small")
    pieces = synth_log.pieces("valid")
    found = quality(made.model(), synth_log, made.features, pieces)
    best = max(e["auc"] for e in made.origin.training["history"])
    pairs = 2 / float(found.counts.sum(1).prod())  # two, which are parted or come into one of the
    # AUC's bins where the last bias is moved
    assert found.auc == pytest.approx(best, abs=1.01 * pairs)
    assert not (tmp_path / "small/.checkpoints").exists()


@pytest.mark.slow
def test_each_save_is_a_new_version_and_the_newest_is_opened(
    original: Artifact, tmp_path: Path
) -> None:
    model = original.model()
    for wanted in (1, 2, 3):
        made = artifact.save(
            tmp_path / "m",
            model,
            features=original.features,
            source=SOURCE,
            alone=None,
            bytes=model_bytes(model),
        )
        assert made.version == wanted
    assert Artifact.open(tmp_path / "m").version == 3
    assert Artifact.open(tmp_path / "m/2").version == 2
    parts = original.disk_bytes
    assert parts["disk"] > model_bytes(model)["total"] + parts["vocabularies"] + parts["program"]
    assert parts["program"] == (original.folder / "scoring.json.gz").stat().st_size
    assert parts["vocabularies"] > 0 == made.disk_bytes["program"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "whole") as fresh:
        fresh.mkdir()
        (fresh / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_every_file_of_an_artifact_has_a_checksum_that_is_checked(
    synth_log: ClickLog, synth_features: Features, tmp_path: Path
) -> None:
    source = ModelSource(model="deepfm", settings={"width": 4, "hidden": [8]}).complete()
    nothing = TrainSettings(epochs=0)
    made = recipes.train(synth_log, synth_features, source, nothing, tmp_path / "m")
    names = {str(f.relative_to(made.folder)) for f in made.folder.rglob("*") if f.is_file()}
    names.remove("manifest.json")
    read = {"features/features.json", "features/vocabularies.parquet", "scoring.json.gz"}
    assert names == read | {"model.safetensors", "origin.json.gz"}
    assert made.manifest.checksums == {
        name: sha256((made.folder / name).read_bytes()).hexdigest() for name in names
    }
    for name in sorted(names):
        file = made.folder / name
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(BadArtifact, match=rf"{name} is not the file that was written"):
            Artifact.open(made.folder)
        file.unlink()
        with pytest.raises(BadArtifact, match=rf"{name} is missing"):
            Artifact.open(made.folder)
        file.write_bytes(whole)


def test_a_newer_format_is_refused(original: Artifact, tmp_path: Path) -> None:
    manifest = json.loads((original.folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(BadArtifact, match=r"format 99.*install a newer embedcomp"):
        Artifact.open(tmp_path)


def test_one_user_with_many_items_scores_as_the_rows_written_out(
    synth_log: ClickLog, original: Artifact
) -> None:
    scorer = Scorer(original)
    rows = next(requests(synth_log)).slice(0, 50)
    sides = {f.name: f.side for f in (*original.features.ids, *original.features.dense)}
    user = rows.slice(3, 1).select([n for n in rows.schema.names if sides.get(n) == "user"])
    items = rows.select([n for n in rows.schema.names if sides.get(n) == "item"])
    written_out = {name: pa.concat_arrays([user[name]] * 50) for name in user.schema.names}
    whole = pa.RecordBatch.from_pydict(written_out | {n: items[n] for n in items.schema.names})
    assert np.array_equal(scorer.score(items, user), scorer.score(whole))


def test_scores_do_not_depend_on_unknown_columns_and_unknown_ids_score(
    synth_log: ClickLog, original: Artifact
) -> None:
    scorer, rows = Scorer(original), next(requests(synth_log)).slice(0, 5)
    more = rows.append_column("extra", pa.array(range(5)))
    assert np.array_equal(scorer.score(rows), scorer.score(more))
    place = rows.schema.get_field_index("item_id")
    unknown = rows.set_column(place, "item_id", pa.array([-1] * 5))
    assert np.isfinite(scorer.score(unknown)).all()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("item_id", ["7"] * 5, "'item_id': holds string values"),
        ("user_id", [1] * 5, "'user_id': holds int64 values"),
        ("tags", ["t001"] * 5, "'tags': holds string values, but must hold lists"),
        ("price", ["1"] * 5, "'price': holds string values, but must hold numbers"),
        ("price", [float("inf")] * 5, "'price': holds an infinite value"),
    ],
)
def test_a_wrong_column_is_named(
    synth_log: ClickLog, original: Artifact, column: str, values: list[object], message: str
) -> None:
    rows = next(requests(synth_log)).slice(0, 5)
    place = rows.schema.get_field_index(column)
    with pytest.raises(BadRequest, match=message):
        Scorer(original).score(rows.set_column(place, column, pa.array(values)))


def test_a_missing_feature_is_named(synth_log: ClickLog, original: Artifact) -> None:
    rows = next(requests(synth_log)).slice(0, 5)
    with pytest.raises(BadRequest, match="'brand': is missing"):
        Scorer(original).score(rows.drop_columns(["brand"]))


def test_nulls_score_whatever_their_type(synth_log: ClickLog, original: Artifact) -> None:
    rows = next(requests(synth_log)).slice(0, 3)
    nulls = pa.RecordBatch.from_pydict({n: pa.nulls(3) for n in rows.schema.names})
    assert np.isfinite(Scorer(original).score(nulls)).all()
    assert len(Scorer(original).score(rows.slice(0, 0))) == 0


FORMATS = sorted((Path(__file__).parent / "data").glob("format_*"))


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_artifacts_of_every_format_load_for_ever(folder: Path) -> None:
    scorer = Scorer.open(folder)
    known = json.loads((folder / "known.json").read_text())
    types = {name: scorer.features.column_type(name) for name in scorer.features.names}
    columns = {name: pa.array([r[name] for r in known["rows"]], t) for name, t in types.items()}
    scores = scorer.score(pa.RecordBatch.from_pydict(columns))
    np.testing.assert_allclose(scores, known["scores"], rtol=1e-5)
    assert FORMATS[-1].name == f"format_{artifact.FORMAT}"


@pytest.mark.slow
def test_a_budget_of_the_disk_is_for_all_files(
    synth_log: ClickLog, original: Artifact, tmp_path: Path
) -> None:
    whole = original.disk_bytes["disk"]
    settings = CompressSettings(
        budget="2x", budget_of="disk", methods=("row_int8", "row_int4", "half")
    )
    measured = recipes.measure(original, synth_log, settings)
    planning = recipes.Planning(original, measured)
    plan = planning.plan(settings)
    made = recipes.compress(original, synth_log, measured, plan, settings, tmp_path / "m")
    assert 0.8 * whole / 2 < made.disk_bytes["disk"] <= whole / 2
    with pytest.raises(LimitsTooSmall, match=r"on disk cannot be met: .* give at least") as told:
        planning.plan(replace(settings, budget="20x"))
    (enough,) = re.findall(r"at least ([\d,]+) or", str(told.value))
    assert planning.plan(replace(settings, budget=enough)).bytes_after > 0
    with pytest.raises(BadSettings, match="budget_of is for a budget"):
        CompressSettings(max_auc_loss=0.1, budget_of="disk")
