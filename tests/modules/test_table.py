from __future__ import annotations

import pytest
import torch
from torch import nn

from embedcomp.modules.linear import LowRankLinear
from embedcomp.modules.table import CompressedBag, CompressedEmbedding
from embedcomp.storage.decode import Affine, Scatter
from embedcomp.storage.rows import StoredRows

ROWS, DIM = 30, 6
IDS = torch.tensor([3, 3, 29, 0, 7, 8])
OFFSETS = torch.tensor([0, 2, 2, 5, 6, 6])  # the second and the last bag are empty


def compressed(kind=CompressedBag, k=4, bias=True, **settings):
    """A table of codes, and the float table that it stands for."""
    generator = torch.manual_seed(0)
    table = kind(
        ROWS,
        DIM,
        **settings,
        stored=StoredRows(ROWS, k, "float32"),
        decode=Affine(k, DIM, "float32", bias),
    )
    table.fill(torch.randn(ROWS, k, generator=generator))
    shift = torch.randn(DIM, generator=generator) if bias else None
    table.decode.fill(torch.randn(k, DIM, generator=generator), shift)
    return table, table.to_float().detach()


def float_bag(weight, mode, last_offset=True):
    return nn.EmbeddingBag.from_pretrained(weight, mode=mode, include_last_offset=last_offset)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("last_offset", [True, False])
def test_bags_equal_those_of_the_decoded_table(pooling, k, bias, last_offset):
    table, weight = compressed(k=k, bias=bias, pooling=pooling, last_offset=last_offset)
    offsets = OFFSETS if last_offset else OFFSETS[:-1]
    expected = float_bag(weight, pooling, last_offset)(IDS, offsets)
    assert torch.allclose(table(input=IDS, offsets=offsets), expected, atol=1e-5)


def test_empty_bags_are_exactly_zero():
    table, _ = compressed(pooling="mean")
    assert table(IDS, OFFSETS)[[1, 4]].eq(0).all()


def test_an_empty_batch_gives_no_rows():
    table, _ = compressed(pooling="sum")
    assert table(IDS[:0], torch.zeros(1, dtype=torch.long)).shape == (0, DIM)


def test_weighted_bags_count_the_bias_by_weight():
    table, weight = compressed(pooling="sum")
    weights = torch.tensor([0.5, 2.0, -1.0, 3.0, 0.0, 1.0])
    expected = float_bag(weight, "sum")(IDS, OFFSETS, per_sample_weights=weights)
    found = table(IDS, OFFSETS, per_sample_weights=weights)
    assert torch.allclose(found, expected, atol=1e-5)


def test_two_dimensional_ids_are_bags_of_one_length():
    table, weight = compressed(pooling="mean")
    ids = IDS.view(2, 3)
    assert torch.allclose(table(ids), float_bag(weight, "mean")(ids), atol=1e-5)


def test_ids_may_be_of_32_bits():
    table, _ = compressed(pooling="mean")
    assert torch.equal(table(IDS.int(), OFFSETS.int()), table(IDS, OFFSETS))


def test_sequences_equal_those_of_the_decoded_table():
    table, weight = compressed(CompressedEmbedding)
    ids = IDS.view(3, 2)
    assert torch.allclose(table(ids), weight[ids], atol=1e-6)
    assert table(ids[:0]).shape == (0, 2, DIM)


def test_gradients_reach_codes_and_decoder():
    table, _ = compressed(pooling="mean")
    table.stored.thaw()
    table.decode.stored.thaw()
    table.decode.stored_bias.thaw()
    table(IDS, OFFSETS).square().sum().backward()
    assert table.stored.master.grad.is_sparse
    assert table.decode.stored.master.grad.abs().sum() > 0
    assert table.decode.stored_bias.master.grad.abs().sum() > 0


@pytest.mark.parametrize(("storage", "stored"), [("float32", "float32"), ("float16", "float16")])
def test_biases_of_the_first_formats_are_read_as_the_floats_that_they_are(storage, stored):
    decoder = Affine(2, DIM, storage, True)
    decoder.fill(torch.randn(2, DIM), torch.randn(DIM))
    layer = LowRankLinear(5, DIM, 2, bias="row_int8", storage="column_int8")
    for module in (decoder, layer, Scatter(2, DIM, stored)):
        old = torch.randn(DIM)
        state = {n: t for n, t in module.state_dict().items() if "stored_bias" not in n}
        holder = nn.ModuleDict({"inside": module}).to("meta")
        named = {f"inside.{n}": t for n, t in (state | {"bias": old}).items()}
        holder.load_state_dict(named, assign=True)
        assert torch.equal(module.bias, old)
