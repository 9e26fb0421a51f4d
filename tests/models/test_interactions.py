"""What sets each model apart, with known answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from embedcomp.errors import BadSettings
from embedcomp.log.batches import Batch, in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.models import autoint, fibinet
from embedcomp.models._layers import Fields, FirstOrder
from embedcomp.models.nfm import bi_interaction

B, F, D = 5, 4, 3


@pytest.fixture
def fields() -> torch.Tensor:
    return torch.randn(B, F, D, generator=torch.manual_seed(0))


@pytest.fixture
def batch(synth_log: ClickLog, synth_features: Features) -> Batch:
    return next(iter(in_order(synth_log, synth_features, synth_log.pieces("test"), B)))


def test_bi_interaction_is_the_sum_of_the_products_of_all_pairs(fields: torch.Tensor) -> None:
    wanted = sum(fields[:, i] * fields[:, j] for i, j in combinations(range(F), 2))
    torch.testing.assert_close(bi_interaction(fields), wanted)
    assert bi_interaction(torch.tensor([[[2.0], [3.0], [5.0]]])).item() == 6 + 10 + 15


def test_one_field_has_no_pairs(fields: torch.Tensor) -> None:
    torch.testing.assert_close(bi_interaction(fields[:, :1]), torch.zeros(B, D))


def test_a_senet_with_weights_of_one_leaves_fields_as_they_are() -> None:
    fields = torch.tensor([[[1.0, 3.0], [2.0, 6.0]]])  # of means 2 and 4
    senet = fibinet.SENET(2, reduction=2)
    senet.weights[0].weight.data = torch.tensor([[0.5, 0.0]])  # half the first mean: 1
    senet.weights[2].weight.data = torch.tensor([[1.0], [1.0]])
    assert torch.equal(senet(fields), fields)
    senet.weights[2].weight.data = torch.tensor([[3.0], [-1.0]])  # a weight is never below zero
    assert senet(fields).tolist() == [[[3.0, 9.0], [0.0, 0.0]]]


@pytest.mark.parametrize(("kind", "layers"), [("all", 1), ("each", F - 1), ("interaction", F - 1)])
def test_bilinear_is_a_product_through_a_matrix_for_each_pair(
    fields: torch.Tensor, kind: str, layers: int
) -> None:
    bilinear = fibinet.Bilinear(F, D, kind)
    assert len(bilinear.layers) == layers
    weights = [layer.weight for layer in bilinear.layers]
    wanted = []
    for i, j in combinations(range(F), 2):
        weight = weights[0 if kind == "all" else i]
        if kind == "interaction":
            weight = weight[D * (j - i - 1) : D * (j - i)]
        wanted.append((fields[:, i] @ weight.T) * fields[:, j])
    torch.testing.assert_close(bilinear(fields), torch.cat(wanted, 1))


def test_only_each_pair_of_its_own_has_a_matrix_of_its_own() -> None:
    numbers = {
        kind: sum(p.numel() for p in fibinet.Bilinear(F, D, kind).parameters())
        for kind in ("all", "each", "interaction")
    }
    square, pairs = D * D, F * (F - 1) // 2
    assert numbers == {"all": square, "each": (F - 1) * square, "interaction": pairs * square}


def test_a_field_alone_attends_to_itself(fields: torch.Tensor) -> None:
    attention = autoint.Attention(D, 6, heads=2)
    alone = fields[:, :1]
    wanted = torch.relu(attention.value(alone) + attention.residual(alone))
    torch.testing.assert_close(attention(alone), wanted)


def test_without_queries_a_field_attends_to_all_alike(fields: torch.Tensor) -> None:
    attention = autoint.Attention(D, 6, heads=2)
    torch.nn.init.zeros_(attention.query.weight)
    mean = attention.value(fields).mean(1, keepdim=True)
    torch.testing.assert_close(attention(fields), torch.relu(mean + attention.residual(fields)))


def test_attention_is_multi_head_attention_with_a_residual(fields: torch.Tensor) -> None:
    attention = autoint.Attention(D, 6, heads=3)
    query, key, value = (
        layer(fields).view(B, F, 3, 2).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    wanted = torch.relu(mixed.transpose(1, 2).reshape(B, F, 6) + attention.residual(fields))
    torch.testing.assert_close(attention(fields), wanted)


def test_the_order_of_fields_is_nothing_to_attention(fields: torch.Tensor) -> None:
    attention, order = autoint.Attention(D, 6, heads=2), [2, 0, 3, 1]
    torch.testing.assert_close(attention(fields[:, order]), attention(fields)[:, order])


def test_a_dense_feature_is_a_field_that_its_value_scales(synth_features: Features) -> None:
    made = Fields(synth_features, D)
    rows, dense = torch.randn(B, len(synth_features.ids) * D), torch.randn(B, 2)
    found = made(rows, dense)
    assert found.shape == (B, made.count, D) == (B, len(synth_features.ids) + 2, D)
    assert torch.equal(found[:, :-2].flatten(1), rows)
    torch.testing.assert_close(found[:, -1], dense[:, 1:] * made.vectors[1])
    none = Fields(replace(synth_features, dense=()), D)
    assert torch.equal(none(rows, dense[:, :0]).flatten(1), rows)


def test_the_first_order_counts_every_id_and_dense_feature(
    synth_features: Features, batch: Batch
) -> None:
    first_order = FirstOrder(synth_features)
    for table in first_order.tables.embedding_bags.values():
        torch.nn.init.ones_(table.weight)
    torch.nn.init.constant_(first_order.dense.weight, 2.0)
    torch.nn.init.zeros_(first_order.dense.bias)
    filled = (batch.sparse.lengths() > 0).view(-1, B).sum(0)  # the mean of ones, or of nothing
    torch.testing.assert_close(
        first_order(batch.dense, batch.sparse), filled + 2 * batch.dense.sum(1)
    )


def test_settings_that_make_no_model_are_refused(synth_features: Features) -> None:
    with pytest.raises(BadSettings, match="64 cannot be shared by 3 heads"):
        autoint.Settings(heads=3)
    with pytest.raises(BadSettings, match="reduction is 0"):
        fibinet.Settings(reduction=0)
    one = replace(synth_features, ids=synth_features.ids[:1], dense=())
    with pytest.raises(BadSettings, match="the log has only one"):
        fibinet.build(one, fibinet.Settings())
