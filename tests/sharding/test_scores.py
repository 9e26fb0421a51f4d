"""Scores with rows from shards are those of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import embedcomp
from embedcomp.engine.engine import BadId
from embedcomp.errors import BadArtifact, BadRequest, BadSettings
from embedcomp.kernels import native
from embedcomp.kernels.routing import SLOTS
from embedcomp.sharding.cutting import Cutting
from tests.engine.conftest import KERNELS
from tests.sharding.cases import (
    EVERY,
    IDS,
    INDICES,
    InProcess,
    cut,
    front,
    inputs,
    model,
    save,
)

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")
SHARDS = (1, 2, 3, 8)
BITS = ("column_int8", "column_int4", "column_mixed3")  # of which the engine sums whole numbers


FORMS = [
    (storage, INDICES[place % 4], ("", "affine", "scatter")[place % 3])
    for place, storage in enumerate(EVERY)
] + [("tiered", "none", ""), ("trellis", "ranked", ""), ("column_int8", "map", "affine")]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("storage", "form", "decoded"), FORMS)
def test_every_form_scores_as_one_process(
    storage: str, form: str, decoded: str, tmp_path: Path
) -> None:
    whole = save(model(storage, form, decoded), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    one = embedcomp.Scorer(whole)
    single, bags = inputs(150, most=1), inputs(150, seed=1, most=5)
    for number in SHARDS:
        shards = InProcess(made, number)
        several = front(made, shards)
        assert np.array_equal(several.score(single), one.score(single))
        found, wanted = several.score(bags), one.score(bags)
        if storage in BITS:
            assert np.array_equal(found, wanted)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        assert shards.asked == 2


@pytest.mark.parametrize("storage", ["row_int4", "float16", "column_int8", "trellis"])
def test_every_kind_of_cpu_scores_as_one_process(storage: str, tmp_path: Path) -> None:
    whole = save(model(storage, "cut", "affine"), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    single = inputs(60, most=1)
    one, several = embedcomp.Scorer(whole), front(made, InProcess(made, 2))
    try:
        for kernels in KERNELS:
            native.needed().embedcomp_kernels(kernels)
            assert np.array_equal(several.score(single), one.score(single))
    finally:
        native.needed().embedcomp_kernels(0)


@pytest.mark.slow
def test_rows_near_the_front_are_not_asked_for(tmp_path: Path) -> None:
    whole = save(model("float16", "ranked"), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut", near_bytes=12_000)
    found = Cutting.of(made.folder)
    assert found is not None
    near = {name: table.near for name, table in found.tables.items()}
    assert all(0 < near[name] < IDS[name.rpartition("t_")[2]] for name in near)
    shards = InProcess(made, 2)
    dense, sparse = inputs(40)
    few = type(sparse)(keys=sparse.keys(), values=sparse.values() % 30, lengths=sparse.lengths())
    one, several = embedcomp.Scorer(whole), front(made, shards)
    assert np.array_equal(several.score((dense, few)), one.score((dense, few)))
    assert shards.asked == 0
    np.testing.assert_allclose(
        several.score((dense, sparse)), one.score((dense, sparse)), rtol=0, atol=1e-6
    )
    assert shards.asked == 1


@pytest.mark.parametrize("ids", [SLOTS - 1, SLOTS])
def test_a_table_of_fewer_ids_than_slots_stays_whole(
    ids: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(IDS, "mean", ids)
    whole = save(model("row_int8"), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    found = Cutting.of(made.folder)
    assert found is not None
    assert len(found.tables) == (2 if ids < SLOTS else 3)
    rows = inputs(150, most=1)
    scores = front(made, InProcess(made, 2)).score(rows)
    assert np.array_equal(scores, embedcomp.Scorer(whole).score(rows))


def test_the_user_of_all_rows_is_asked_for_once(tmp_path: Path) -> None:
    whole = save(model("column_int8", "cut"), tmp_path / "whole", inputs(5), user=["several"])
    made = cut(whole, tmp_path / "cut")
    dense, sparse = inputs(20)
    lengths = sparse.lengths().view(3, 20).clone()
    lengths[1] = 3
    user, rest = torch.tensor([700, 701, 3]), sparse.to_dict()
    values = torch.cat([rest["one"].values(), user.repeat(20), rest["mean"].values()])
    same = type(sparse)(keys=sparse.keys(), values=values, lengths=lengths.view(-1))
    shards = InProcess(made, 2)
    one, several = embedcomp.Scorer(whole), front(made, shards)
    assert several.splits
    wanted = one.score((dense, same), one_user=True)
    assert np.array_equal(several.score((dense, same), one_user=True), wanted)
    assert np.array_equal(several.score((dense, same)), one.score((dense, same)))


def test_weights_of_ids_count(tmp_path: Path) -> None:
    example = inputs(5, weighted=True)
    whole = save(model("float16", "map", weighted=True), tmp_path / "whole", example)
    made = cut(whole, tmp_path / "cut")
    shards = InProcess(made, 3)
    given = inputs(80, seed=3, weighted=True)
    found = front(made, shards).score(given)
    np.testing.assert_allclose(found, embedcomp.Scorer(whole).score(given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("id", [-1, IDS["one"], 1 << 40])
def test_an_id_out_of_range_is_told_as_by_one_process(id: int, tmp_path: Path) -> None:
    whole = save(model("float16"), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    dense, sparse = inputs(4)
    values = sparse.values().clone()
    values[2] = id
    wrong = type(sparse)(keys=sparse.keys(), values=values, lengths=sparse.lengths())
    said = []
    for scorer in (embedcomp.Scorer(whole), front(made, InProcess(made, 2))):
        with pytest.raises(BadId) as raised:
            scorer.score((dense, wrong))
        said.append(str(raised.value))
    assert said[0] == said[1]
    good = dense, sparse
    found, wanted = scorer.score(good), embedcomp.Scorer(whole).score(good)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)  # nothing is left of the bad call


def test_bags_that_do_not_fit_are_told(tmp_path: Path) -> None:
    whole = save(model("float16"), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    dense, sparse = inputs(4)
    lengths = sparse.lengths().clone()
    lengths[-1] += 1
    wrong = type(sparse)(keys=sparse.keys(), values=sparse.values(), lengths=lengths)
    with pytest.raises(BadRequest, match="do not fit"):
        front(made, InProcess(made, 2)).score((dense, wrong))


def test_without_a_shard_an_id_counts_for_nothing_where_none_is_unknown(tmp_path: Path) -> None:
    whole = save(model("column_int8"), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    dense, sparse = inputs(30, most=3)
    shards = InProcess(made, 2, down=(1,))
    kept = (sparse.values() % 2 == 0) | (sparse.values() == 0)  # the front has id 0 itself
    ends = sparse.lengths().cumsum(0)
    bag = torch.bucketize(torch.arange(len(kept)), ends, right=True)
    lengths = torch.zeros_like(sparse.lengths()).index_add_(0, bag, kept.long())
    fewer = type(sparse)(keys=sparse.keys(), values=sparse.values()[kept], lengths=lengths)
    found = front(made, shards).score((dense, sparse))
    assert np.array_equal(found, embedcomp.Scorer(whole).score((dense, fewer)))


def test_a_whole_artifact_has_no_shards(tmp_path: Path) -> None:
    whole = save(model("float16"), tmp_path / "whole", inputs(5))
    made = cut(whole, tmp_path / "cut")
    with pytest.raises(BadSettings, match="is not cut into slots"):
        front(whole, InProcess(made, 2))
    with pytest.raises(BadArtifact, match="serve it with --shards"):
        embedcomp.Scorer(made)
    with pytest.raises(BadSettings, match="is cut into slots already"):
        cut(made, tmp_path / "again")
    with pytest.raises(BadSettings, match=r"no table of more than 1,000,000 bytes"):
        cut(whole, tmp_path / "again", near_bytes=1_000_000)
