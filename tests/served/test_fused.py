"""All tables in one compiled lookup give what the collection gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embedcomp
from embedcomp.compress import swap
from embedcomp.compress.planner import plan
from embedcomp.compress.sizes import module_bytes
from embedcomp.served import fused, native
from embedcomp.served.formats import STORAGES, format_of
from tests.compress import small

B, ROWS = 33, 50
WIDTHS = {"a": 8, "b": 7, "c": 16}
KEYS = ["c", "a", "b", "a2"]  # not in the tables' order; a2 reads the table of a

pytestmark = pytest.mark.skipif(native.library() is None, reason="the lookup was not compiled")


def collection(pooling: PoolingType) -> EmbeddingBagCollection:
    torch.manual_seed(0)
    features = {"a": ["a", "a2"], "b": ["b"], "c": ["c"]}
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                num_embeddings=ROWS,
                embedding_dim=width,
                feature_names=features[name],
                pooling=pooling,
                init_fn=nn.init.normal_,
            )
            for name, width in WIDTHS.items()
        ]
    )


def batch(seed: int = 0) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(KEYS) * B,), generator=generator)
    ids = torch.randint(0, ROWS, (int(lengths.sum()),), generator=generator)
    return KeyedJaggedTensor(keys=KEYS, values=ids, lengths=lengths)


WAYS = [
    *(s for s in STORAGES if s.startswith("row") or s == "float16"),
    *({"method": "low_rank", "rank": 5, "storage": s} for s in STORAGES if "row" not in s),
    {"method": "svd", "rank": 3, "storage": "column_int8"},
    {"method": "low_rank", "rank": 0},
    None,
]


@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
@pytest.mark.parametrize("way", WAYS, ids=str)
@torch.no_grad()
def test_every_storage_gives_what_the_collection_gives(way, pooling):
    model = nn.Sequential(collection(pooling))
    if way is not None:
        embedcomp.swap_(model, {"*": way})
    wanted = model(batch())
    with fused.fused(model):
        assert type(model[0]) is fused.FusedTables
        found = model(batch())
    assert type(model[0]) is EmbeddingBagCollection
    assert found.keys() == wanted.keys()
    assert found.length_per_key() == wanted.length_per_key()
    torch.testing.assert_close(found.values(), wanted.values(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.15, 0.1])
@torch.no_grad()
def test_folded_decoders_and_dense_features_come_out_the_same(share):
    model, found, measured = small.measured()
    budget = int(share * module_bytes(model))
    made = plan(model, found, measured, budget, ["low_rank", "row_int8"], small.SINGLE)
    served = swap.apply(model, made, found, measured).eval()
    assert any(
        bag.folded for bag in served.embeddings.embedding_bags.values() if hasattr(bag, "folded")
    )
    wanted = served(small.batches()[0].dense, small.batches()[0].sparse)
    fast = fused.fuse(copy.deepcopy(served))
    assert type(fast.embeddings) is fused.FusedTables
    scores = fast(small.batches()[0].dense, small.batches()[0].sparse)
    torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [-1, ROWS, 1 << 40])
def test_an_id_out_of_range_is_named(bad):
    model = fused.fuse(nn.Sequential(collection(PoolingType.SUM)))
    inputs = batch()
    place = int(inputs.offset_per_key()[2])  # the first id of b
    inputs.values()[place] = bad
    with pytest.raises(
        IndexError, match=rf"feature 'b' has id {bad}, but its table has rows 0 to 49"
    ):
        model(inputs)


def test_what_the_lookup_cannot_do_is_left_as_it_is():
    weighted = EmbeddingBagCollection(
        is_weighted=True,
        tables=[
            EmbeddingBagConfig(name="t", num_embeddings=4, embedding_dim=2, feature_names=["f"])
        ],
    )
    model = nn.Sequential(weighted)
    assert fused.fuse(model)[0] is weighted
    thawed = nn.Sequential(collection(PoolingType.SUM))
    embedcomp.swap_(thawed, {"*": "row_int8"})
    embedcomp.thaw_(thawed)
    assert type(fused.fuse(thawed)[0]) is EmbeddingBagCollection


def test_float16_rows_of_every_size_are_read():
    values = torch.tensor([0.0, -0.0, 1e-7, 6e-8, 5.9e-5, 6.2e-5, 1.0, -65504.0, 3.14159, -2e-6])
    table = nn.EmbeddingBag.from_pretrained(values[:, None].repeat(1, 2), mode="sum")
    model = nn.Sequential(collection(PoolingType.SUM))
    model[0].embedding_bags["a"] = table
    model[0].embedding_bag_configs()[0].num_embeddings = len(values)
    model[0].embedding_bag_configs()[0].embedding_dim = 2
    embedcomp.swap_(model, {"*.a": "float16"})
    made = fused.FusedTables(model[0])
    one = torch.zeros(len(KEYS), len(values), dtype=torch.long)
    one[KEYS.index("a")] = torch.arange(len(values))
    lengths = torch.ones(one.numel(), dtype=torch.long)
    rows = made(KeyedJaggedTensor(keys=KEYS, values=one.reshape(-1), lengths=lengths))
    assert torch.equal(rows["a"][:, 0], values.half().float())


@pytest.mark.parametrize("bits", range(2, 7))
@pytest.mark.parametrize("width", [1, 5, 16])
def test_compiled_decoding_gives_torchs_bits(bits, width, monkeypatch):
    rounding = format_of(f"column_mixed{bits}")
    weight = torch.randn(40, width, generator=torch.Generator().manual_seed(bits))
    weight *= torch.linspace(0.1, 3.0, width)
    grid = rounding.fit(weight, None, None)
    stored = rounding.encode(weight, grid)
    compiled = rounding.decode(stored, grid, width)
    monkeypatch.setattr(native, "library", lambda: None)
    assert torch.equal(rounding.decode(stored, grid, width), compiled)
