"""Forms that are trained from the log alone, with the ranks that a trained model gets by with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from embedcomp import methods, recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.methods import low_rank
from embedcomp.modules.embedded import readers
from embedcomp.planning import planner
from embedcomp.planning.folding import folded, narrowed
from embedcomp.recipes.measuring import layers_of
from embedcomp.recipes.settings import CompressSettings
from embedcomp.sensitivity.layer import Spec
from embedcomp.sensitivity.layers import as_drawn, find
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.train.settings import TrainSettings
from tests.small import SINGLE
from tests.small import measured as measured_small

SCHEMA = """\
label = "label"
[splits]
train = "train.parquet"
valid = "valid.parquet"
[categorical]
user = {}
item = {}
[dense]
price = {}
"""
IDS = 40
HOW = TrainSettings(epochs=3, batch_rows=128, learning_rate=3e-3, table_learning_rate=3e-3)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    """Clicks of a user, an item and a price that each count, whose best AUC is 0.83."""
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(0)
    user_effect, item_effect = rng.normal(size=(2, IDS))
    for split, rows in (("train", 8_000), ("valid", 2_000)):
        user, item = rng.integers(0, IDS, (2, rows))
        price = rng.normal(size=rows)
        chance = 1 / (1 + np.exp(-user_effect[user] - item_effect[item] - price))
        label = (rng.random(rows) < chance).astype(np.int8)
        columns = {"label": label, "user": user, "item": item, "price": price}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    (folder / "schema.toml").write_text(SCHEMA)
    return ClickLog(str(folder))


@pytest.fixture(scope="module")
def original(log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    features = Features.from_counts(log, count(log, log.pieces("train")), 1)
    settings = {"width": 8, "bottom": [16], "hidden": [64, 64, 32, 16]}
    source = ModelSource(model="dlrm", settings=settings).complete()
    return recipes.train(log, features, source, HOW, tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_dense_layers_of_rank_1_learn_from_the_log(
    log: ClickLog, original: Artifact, tmp_path: Path, seed: int
) -> None:
    how = replace(HOW, epochs=6, seed=seed)
    settings = CompressSettings(budget="5x", train=how, from_log=True)
    wanted = {"top.*": {"method": "low_rank", "rank": 1, "storage": "float16"}, "*": "half"}
    plan = planner.by_name(original.model(), layers_of(original, original.model()), wanted)
    made = recipes.compress(original, log, Statistics(), plan, settings, tmp_path)
    assert made.proof is not None and made.proof.model is not None
    assert (made.proof.model.auc or 0) > 0.75


@pytest.mark.slow
def test_no_plan_from_the_log_has_an_activation_between_factors(
    log: ClickLog, original: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[bool, bool] = {}
    offered = low_rank.candidates
    for from_log in (False, True):

        def seen(spec: Spec, from_log: bool = from_log) -> list[low_rank.Settings]:
            found = offered(spec)
            asked[from_log] |= any(settings.activation for settings in found)
            return found

        monkeypatch.setattr(low_rank, "candidates", seen)  # a new one is asked anew
        asked[from_log] = False
        given = {"methods": ("low_rank", "half"), "train": HOW, "from_log": from_log}
        settings = CompressSettings(budget="8x", **given)
        recipes.plan(original, recipes.measure(original, log, settings), settings)
    assert asked == {False: True, True: False}


@pytest.mark.parametrize("name", ["low_rank", "svd", "ordered_rank"])
@pytest.mark.parametrize("rank", [1, 4])
def test_drawn_numbers_are_as_large_in_few_ranks(name: str, rank: int) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"l": nn.Linear(40, 30), "t": nn.EmbeddingBag(500, 16, mode="sum")})
    method = methods.get(name)
    settings = method.Settings(rank=rank, storage="float32")
    for drawn in (True, False):
        found = find(model, {})
        for key, layer in (as_drawn(found) if drawn else found).layers.items():
            floats = method.compress(layer, settings).to_float()
            product = floats if key == "t" else floats[0]
            share = float(product.norm() / layer.weight.norm())
            assert abs(share - 1) < 0.05 if drawn else share < 0.75


def test_a_layer_that_decoders_are_folded_into_is_still_drawn() -> None:
    model, found, _ = measured_small()
    layers = as_drawn(found).layers
    around = readers(model)
    name, reader = next(iter(around.items()))
    table = reader.blocks[0].table
    served = low_rank.compress(layers[table], low_rank.Settings(rank=2))
    codes = folded(reader, {table: (layers[table], served)}, SINGLE)
    assert codes and narrowed(layers[name], reader, codes).drawn
    assert not narrowed(found.layers[name], reader, codes).drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, from_log, floats",
    [("hashed", False, 1), ("low_rank", False, 0), ("hashed", True, 1), ("low_rank", True, 1)],
)
def test_what_begins_far_is_in_floats_for_half_a_run(
    log: ClickLog, original: Artifact, tmp_path: Path, method: str, from_log: bool, floats: int
) -> None:
    """Before the first step it is neither, and after two epochs both are rounded."""
    distil = None if from_log else 0.7
    how = replace(HOW, epochs=2, schedule="linear", embedding_l2=0.0, distil=distil)
    settings = CompressSettings(budget="5x", train=how, from_log=from_log)
    table = {"share": 0.7} if method == "hashed" else {"rank": 4, "storage": "column_int8"}
    wanted = {"*.user": {"method": method, **table}, "*": "keep"}
    plan = planner.by_name(original.model(), layers_of(original, original.model()), wanted)
    made = recipes.compress(original, log, Statistics(), plan, settings, tmp_path)
    history = made.origin.training["history"]
    at = {entry["epoch"]: entry.get("settled", True) for entry in history}
    assert at[0] is (not floats) and at[2]


@pytest.mark.slow
def test_rows_of_four_bits_reach_their_size_from_the_log(
    log: ClickLog, original: Artifact, tmp_path: Path
) -> None:
    how = replace(HOW, epochs=6, schedule="linear", embedding_l2=0.0)
    settings = CompressSettings(budget="5x", train=how, from_log=True)
    tables = {"method": "column_quantized", "storage": "column_mixed4"}
    wanted = {"*embedding*": tables, "*": "half"}
    plan = planner.by_name(original.model(), layers_of(original, original.model()), wanted)
    made = recipes.compress(original, log, Statistics(), plan, settings, tmp_path)
    assert made.proof is not None and made.proof.model is not None
    assert (made.proof.model.auc or 0) > 0.75
