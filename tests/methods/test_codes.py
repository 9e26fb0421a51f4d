"""What product_quantization, low_rank_vq, weight_clustering and sparse_dictionary promise."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from embedcomp import methods
from embedcomp.errors import BadSettings
from embedcomp.methods.baselines import (
    low_rank_vq,
    product_quantization,
    sparse_dictionary,
    weight_clustering,
)
from embedcomp.methods.parts.rotation import rotation
from embedcomp.planning.choices import empty_bytes
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    LinearStatistics,
    TableSpec,
    TableStatistics,
)
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.rows import keeping_unrounded

ROWS, DIM = 2000, 8
CODES = (low_rank_vq, product_quantization, sparse_dictionary, weight_clustering)
of_each = pytest.mark.parametrize("method", CODES, ids=lambda m: m.__name__.split(".")[-1])


def table(weight=None, counts=None, gradient=None):
    """By default rows of correlated columns, a few of them looked up far more often."""
    if weight is None:
        generator = torch.manual_seed(0)
        mixing = torch.randn(DIM, DIM, generator=generator) * 1.5 ** -torch.arange(DIM)
        weight = torch.randn(ROWS, DIM, generator=generator) @ mixing.T + 1
    if counts is None:
        counts = (1000 / torch.arange(1, len(weight) + 1)).ceil()
    spec = TableSpec(name="t", rows=len(weight), dim=weight.shape[1], pooling="sum")
    return Layer(spec, weight, None, TableStatistics(counts.double(), gradient))


def linear():
    generator = torch.manual_seed(1)
    inputs = torch.randn(400, 24, generator=generator).double() + 2
    statistics = LinearStatistics(inputs.mean(0), inputs.T @ inputs / len(inputs))
    weight = torch.randn(60, 24, generator=generator)
    spec = LinearSpec(name="l", inputs=24, outputs=60, bias=True)
    return Layer(spec, weight, torch.zeros(60), statistics), inputs.float()


def smallest(method, layer):
    spec = layer.spec
    name = method.__name__.split(".")[-1]
    return min(method.candidates(spec), key=lambda settings: empty_bytes(name, spec, settings))


def errors(layer, served):
    """Squared error of each row."""
    return (served.to_float() - layer.weight).square().sum(1)


def settings_of(rank, parts, bits):
    """Methods of product codes, each with settings that give these codes."""
    yield product_quantization, product_quantization.Settings(parts=parts, bits=bits)
    yield (
        product_quantization,
        product_quantization.Settings(parts=parts, bits=bits, rotation=True),
    )
    yield low_rank_vq, low_rank_vq.Settings(rank=rank, parts=parts, bits=bits)


@torch.no_grad()
def test_few_different_rows_of_low_rank_are_exact():
    generator = torch.manual_seed(2)
    rows = torch.randn(16, 3, generator=generator) @ torch.randn(3, DIM, generator=generator)
    layer = table(rows[torch.arange(ROWS) % 16])
    for method, settings in settings_of(rank=3, parts=1, bits=4):
        assert torch.allclose(method.compress(layer, settings).to_float(), layer.weight, atol=4e-3)


@pytest.mark.slow
@torch.no_grad()
def test_more_codes_and_a_higher_rank_lose_less():
    layer = table()
    losses = [
        [
            predicted_loss(layer, method.compress(layer, settings))
            for method, settings in settings_of(rank, parts, bits)
        ]
        for rank, parts, bits in ((2, 1, 4), (4, 2, 4), (6, 2, 8), (7, 4, 8))
    ]
    for fewer, more in pairwise(losses):
        assert all(after < 0.7 * before for before, after in zip(fewer, more, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("parts", "bits"), [(2, 8), (4, 4), (4, 8)])
def test_a_rotation_halves_the_loss_of_correlated_columns(parts, bits):
    layer, method = table(), product_quantization
    losses = [
        predicted_loss(
            layer,
            method.compress(layer, method.Settings(parts=parts, bits=bits, rotation=rotated)),
        )
        for rotated in (False, True)
    ]
    assert losses[1] < 0.5 * losses[0]


def test_a_rotation_keeps_lengths_and_balances_the_groups():
    scales = torch.tensor([8.0, 4.0, 2.0, 1.0]).double()
    rows = torch.randn(3000, 4, generator=torch.manual_seed(0)).double() * scales
    turn = rotation(rows, torch.ones(3000).double(), [0, 2, 4])
    assert torch.allclose(turn @ turn.T, torch.eye(4).double(), atol=1e-9)
    spread = turn.T @ scales.square().diag() @ turn
    volumes = [torch.linalg.det(spread[a : a + 2, a : a + 2]) for a in (0, 2)]
    assert 0.5 < volumes[0] / volumes[1] < 2  # 8 with 1, 4 with 2: about 64 both


@torch.no_grad()
@of_each
def test_frequent_rows_are_stored_better(method):
    layer = table()
    weight = layer.weight.clone()
    weight[:20] *= 0.3  # in another place than the rest
    heavy = torch.where(torch.arange(ROWS) < 20, 1000.0, 0.1)
    even, weighted = table(weight, torch.ones(ROWS)), table(weight, heavy)
    settings = smallest(method, even)
    means = [errors(of, method.compress(of, settings))[:20].mean() for of in (even, weighted)]
    assert means[1] < 0.6 * means[0]


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (product_quantization, product_quantization.Settings(parts=1, bits=4)),
        (low_rank_vq, low_rank_vq.Settings(rank=4, parts=2, bits=4)),
        (sparse_dictionary, sparse_dictionary.Settings(row_atoms=1, atoms=16)),
    ],
)
def test_columns_that_cost_more_loss_are_stored_better(method, settings):
    gradient = torch.diag(torch.tensor([50.0, *[1.0] * (DIM - 1)]).double())
    even, costly = table(), table(gradient=gradient)
    losses = [predicted_loss(costly, method.compress(of, settings)) for of in (even, costly)]
    assert losses[1] < 0.7 * losses[0]


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (weight_clustering, weight_clustering.Settings(bits=2)),
        (sparse_dictionary, sparse_dictionary.Settings(row_atoms=2, atoms=16)),
    ],
)
def test_the_mean_output_of_a_linear_layer_is_kept(method, settings):
    layer, inputs = linear()
    with keeping_unrounded():
        served = method.compress(layer, settings)
    bias, rounded = served.stored_bias.unrounded[0], served.bias
    wanted = torch.nn.functional.linear(inputs, layer.weight).mean(0)
    assert torch.allclose((served(inputs) - rounded + bias).mean(0), wanted, atol=1e-3)
    assert (rounded - bias).abs().max() <= (bias.max() - bias.min()) / 509


def test_clustered_values_are_few():
    layer, _ = linear()
    weight, _ = weight_clustering.compress(layer, weight_clustering.Settings(bits=3)).to_float()
    assert len(weight.unique()) == 8


@of_each
def test_candidates_of_a_long_table_are_a_quarter_of_it_at_most(method):
    name, spec = method.__name__.split(".")[-1], table().spec
    found = method.candidates(spec)
    sizes = [empty_bytes(name, spec, settings) for settings in found]
    assert len(found) >= 4 and max(sizes) <= 1.001 * ROWS * DIM + 512


@of_each
def test_a_short_table_is_taken_although_it_does_not_pay(method):
    spec = TableSpec(name="short", rows=3, dim=2, pooling="sum")
    assert method.candidates(spec)


@torch.no_grad()
@of_each
@pytest.mark.parametrize("rows", [1, 300])
def test_a_table_of_equal_rows_is_exact(method, rows):
    layer = table(torch.tensor([[0.5, -2.0, 0.0, 1.0]]).repeat(rows, 1))
    for settings in method.candidates(layer.spec):
        assert torch.allclose(
            method.compress(layer, settings).to_float(), layer.weight, atol=2e-3
        ), settings


def test_only_tables_are_product_quantized():
    spec = linear()[0].spec
    taking = [name for name in methods.every() if methods.get(name).candidates(spec)]
    assert {"weight_clustering", "sparse_dictionary"} <= set(taking)
    assert not {"product_quantization", "low_rank_vq"} & set(taking)


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        (product_quantization, {"parts": 9}, "t has 8 columns .* 1 to 8 parts and not in 9"),
        (product_quantization, {"parts": 0}, "not in 0"),
        (low_rank_vq, {"rank": 3, "parts": 4}, "t has 3 columns .* not in 4"),
        (low_rank_vq, {"rank": 9, "parts": 4}, "ranks from 0 to 8, so 9 is none"),
        (sparse_dictionary, {"row_atoms": 4, "atoms": 300}, "no storage 'sparse4x300'"),
    ],
)
def test_settings_that_a_table_cannot_have_are_named(method, settings, told):
    with pytest.raises(BadSettings, match=told):
        method.compress(table(), method.Settings(**settings))
