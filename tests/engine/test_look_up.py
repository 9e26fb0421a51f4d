"""What the engine reads of a table, id by id, against bags that are summed one after another.

Stored rows lie in the middle of others that no id may read: 1e4 wherever the engine strays.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcomp.engine.arrays import as_array
from embedcomp.engine.engine import (
    BadId,
    Engine,
    Ids,
    Inputs,
)
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.tensors import StoredMatrix, Table, Tensors
from embedcomp.errors import BadRequest
from embedcomp.graph.graph import Feature, Graph, Node
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.modules.table import CompressedBag
from embedcomp.storage.index import Cut, Index, Map, Ranked, probes_of
from embedcomp.storage.rows import StoredRows
from tests.covering import in_pairs
from tests.engine.conftest import KERNELS

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")

# the last is what bags of one id have a path of their own for, with 16 columns
STORAGES = ("float32", "row_int4", "row_int2", "column_mixed3", "product4x8", "column_int8")
WIDTHS = (7, 16)


def bag(
    ids: int,
    width: int,
    storage: str = "float32",
    *,
    index: Index | None = None,
    pooling: str = "sum",
    padding: int | None = None,
) -> CompressedBag:
    """A table whose stored rows are all different."""
    stored = StoredRows(ids if index is None else index.stored, width, storage)
    stored.fill(torch.randn(stored.rows, width, generator=torch.manual_seed(0)) + 3)
    return CompressedBag(ids, width, pooling, stored, decode=None, index=index, padding_idx=padding)


def engine(table: CompressedBag, key: str | None = "f", count: int = 1) -> Engine:
    """Scores a feature of this table by a weighted sum of the columns; see `weights`."""
    held = {f"t.{n}": as_array(t) for n, t in table.state_dict().items()}
    rows = held["t.stored.stored"]
    around = ((2, 500), *[(0, 0)] * (rows.ndim - 1))
    held["t.stored.stored"] = np.pad(rows, around, constant_values=111)[2:-500]
    held["w"] = weights(table.dim)[None]
    form = StoredMatrix(kind=table.stored.kind, rows=table.stored.rows, width=table.stored.width)
    described = Table(
        rows=table.rows,
        dim=table.dim,
        pooling=table.pooling,
        padding_idx=table.padding_idx,
        stored=True,
        probes=probes_of(table.index),
    )
    tensors = Tensors(held, {"t.stored": form}, {"t": described})
    look_up = Node(op="look_up", at=0, width=table.dim, form="rows")
    layer = Node(
        op="linear", at=table.dim, width=1, x=((0, table.dim),), name="w",
        inputs=table.dim, outputs=1,
    )  # fmt: skip
    feature = Feature(table="t", leaf=0, key=key, count=count)
    graph = Graph(features=(feature,), nodes=(look_up, layer), out=table.dim)
    return Engine(graph, lower(graph, tensors))


def weights(width: int) -> np.ndarray:
    return np.linspace(-1, 2, width, dtype=np.float32)


def score(
    made: Engine,
    ids: np.ndarray,
    lengths: np.ndarray,
    counts: np.ndarray | None = None,
    offsets: np.ndarray | None = None,
) -> np.ndarray:
    """Logits of bags of these lengths, or bounds, with a weight an id."""
    jagged = Ids(
        address(ids),
        len(ids),
        lengths=address(lengths) if offsets is None else 0,
        offsets=0 if offsets is None else address(offsets),
        weights=0 if counts is None else address(counts),
        keys=("f",),
    )
    held = ids, lengths, counts, offsets
    return made.score(Inputs(len(lengths), {0: jagged}, held=held), logits=True)


def expected(
    table: CompressedBag,
    ids: np.ndarray,
    lengths: np.ndarray,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """Scores of pooled rows, summed one id after the other, from the table as floats.

    The score of a sum of rows is the sum of theirs.
    """
    of_row = (table.to_float().double().numpy() @ weights(table.dim)).tolist()
    scores, at = [], 0
    for length in lengths.tolist():
        total, taken = 0.0, 0.0
        for i in range(at, at + length):
            if ids[i] != table.padding_idx:
                count = 1.0 if counts is None else float(counts[i])
                total, taken = total + count * of_row[ids[i]], taken + count
        if table.pooling == "mean" and taken:
            total /= taken
        scores.append(total)
        at += length
    return np.array(scores)


def ones(ids: np.ndarray) -> np.ndarray:
    return np.ones(len(ids), np.int64)


@in_pairs(kernels=KERNELS, storage=STORAGES, width=WIDTHS)
def test_ids_of_a_cut_tail_read_the_last_row(kernels: None, storage: str, width: int) -> None:
    table = bag(600, width, storage, index=Cut(300))
    ids = np.arange(600)
    found = score(engine(table), ids, ones(ids))
    np.testing.assert_allclose(found, expected(table, ids, ones(ids)), rtol=1e-4, atol=1e-4)
    assert (found[299:] == found[299]).all() and found[298] != found[299]
    several = np.array([290, 0, 20, 290])  # of which the last two have ids beyond the cut alone
    found = score(engine(table), ids, several)
    np.testing.assert_allclose(found, expected(table, ids, several), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("kept", "place"),
    [(200, torch.uint8), (300, torch.int16), (1 << 15, torch.int16), (70_000, torch.int32)],
)
def test_every_id_of_a_map_reads_its_own_row(kernels: None, kept: int, place: torch.dtype) -> None:
    index = Map(80_000, kept)
    index.fill(torch.arange(80_000).flip(0) * 7919 % kept)
    assert index.places.dtype == place and int(index.places.max()) == kept - 1
    table, ids = bag(80_000, 2, index=index), np.arange(80_000)
    found = score(engine(table), ids, ones(ids))
    wanted = table.to_float().double().numpy() @ weights(2)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@in_pairs(kernels=KERNELS, ids=(1, 255, 256, 257, 5000), tiers=(2, 3, 4, 5), shared=(False, True))
def test_every_id_of_a_ranked_index_reads_its_own_row(
    kernels: None, ids: int, tiers: int, shared: bool
) -> None:
    """The first row of its tier, and as many further as the tier has ids before it."""
    tier_of = torch.randint(0, tiers, (ids,), generator=torch.manual_seed(tiers))
    tier_of[-1] = tiers - 1  # so that there is a row for all that share one
    kept = int((tier_of < tiers - 1).sum()) + 1 if shared else ids
    index = Ranked(ids, kept, tiers)
    index.fill(tier_of)
    order = torch.argsort(tier_of, stable=True)
    wanted = torch.empty(ids, dtype=torch.int64)
    wanted[order] = torch.arange(ids).clamp_max(kept - 1)
    assert torch.equal(index(torch.arange(ids)), wanted)
    table = bag(ids, 2, index=index)
    found = score(engine(table), np.arange(ids), ones(np.arange(ids)))
    stored = table.stored.to_float().double().numpy() @ weights(2)
    np.testing.assert_allclose(found, stored[wanted], rtol=1e-5, atol=1e-5)


@in_pairs(kernels=KERNELS, storage=STORAGES, width=WIDTHS, pooling=("sum", "mean"))
def test_padding_counts_for_nothing(kernels: None, storage: str, width: int, pooling: str) -> None:
    """Neither its row nor, where codes are summed, what a decoder adds to each."""
    table = bag(20, width, storage, pooling=pooling, padding=5)
    ids = np.array([5, 4, 5, 5, 5, 6, 5, 6, 7, 5, 19, 0])
    for lengths in (ones(ids), np.array([1, 1, 2, 0, 3, 2, 3])):
        found = score(engine(table), ids, lengths)
        wanted = expected(table, ids, lengths)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        assert found[0] == 0
    if pooling == "sum":
        counts = np.linspace(-1, 2, 12, dtype=np.float32)
        found = score(engine(table), ids, lengths, counts)
        wanted = expected(table, ids, lengths, counts)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    matrix = ids.reshape(4, 3)  # bags of one length need no offsets
    given = Inputs(4, {0: Ids(address(matrix), 12, stride=3)}, held=matrix)
    found = engine(table, None, 3).score(given, logits=True)
    wanted = expected(table, ids, np.full(4, 3))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@in_pairs(kernels=KERNELS, storage=STORAGES, id=(-1, 40, 41, 1 << 31, 1 << 62, -(1 << 63)))
def test_an_id_beyond_the_table_is_named(kernels: None, storage: str, id: int) -> None:
    made = engine(bag(40, 16, storage, index=Cut(20)))
    ids = np.array([0, 39, id])
    for lengths in (np.array([1, 1, 1]), np.array([0, 3, 0])):
        with pytest.raises(BadId, match=rf"'f' has id {id:,}, but its table has rows 0 to 39"):
            score(made, ids, lengths)


BEYOND = (1 << 63) - 1


@pytest.mark.parametrize(
    "lengths",
    [
        [1, 1],
        [2, 2],
        [-1, 4],
        [4, -1],
        [BEYOND, BEYOND - 1],
        [-BEYOND - 1, -BEYOND - 1],
        [3, BEYOND],
        [1 << 62, 1 << 62, 1 << 62, 1 << 62, 3],  # 3, in 64 bits
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths: list[int]) -> None:
    with pytest.raises(BadRequest, match="its lengths or offsets do not fit its values"):
        score(engine(bag(40, 4)), np.array([0, 1, 2]), np.array(lengths))


@pytest.mark.parametrize(
    "offsets",
    [[0, 1, 2], [0, 1, 4], [1, 2, 3], [0, 4, 3], [0, -1, 3], [0, BEYOND, 3], [-1, 0, 3]],
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    two = np.ones(2, np.int64)
    with pytest.raises(BadRequest, match="its lengths or offsets do not fit its values"):
        score(engine(bag(40, 4)), np.array([0, 1, 2]), two, offsets=np.array(offsets))


def test_offsets_are_read_as_lengths_are() -> None:
    table, ids, lengths = bag(40, 4), np.array([0, 39, 7]), np.array([2, 0, 1])
    found = score(engine(table), ids, lengths, offsets=np.array([0, 2, 2, 3]))
    assert np.array_equal(found, score(engine(table), ids, lengths))
