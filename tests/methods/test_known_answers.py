"""Methods on layers whose best compression is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedcomp import methods
from embedcomp.modules.sizes import module_bytes
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    LinearStatistics,
    TableSpec,
    TableStatistics,
)
from embedcomp.sensitivity.loss import predicted_loss

ROWS, DIM = 40, 8
GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def same_numbers():
    """Each test has its own, whatever ran before it."""
    GENERATOR.manual_seed(7)


def table(weight=None, counts=None, **changes):
    weight = torch.randn(ROWS, DIM, generator=GENERATOR) if weight is None else weight
    spec = TableSpec(name="t", rows=len(weight), dim=weight.shape[1], pooling="sum", **changes)
    if counts is None:
        counts = torch.arange(len(weight), 0, -1).double()
    return Layer(spec, weight, None, TableStatistics(counts))


def linear(outputs=16, inputs=16, weight=None):
    weight = torch.randn(outputs, inputs, generator=GENERATOR) if weight is None else weight
    spec = LinearSpec(name="l", inputs=inputs, outputs=outputs, bias=True)
    root = torch.randn(inputs, inputs, generator=GENERATOR, dtype=torch.float64)
    mean = torch.randn(inputs, generator=GENERATOR, dtype=torch.float64)
    second = root @ root.T / inputs + mean.outer(mean)
    bias = torch.randn(outputs, generator=GENERATOR)
    return Layer(spec, weight, bias, LinearStatistics(mean, second))


def made(name, layer, **settings):
    method = methods.get(name)
    return method.compress(layer, method.Settings(**settings))


def rows_of(served):
    return served.to_float() if not isinstance(served.to_float(), tuple) else served.to_float()[0]


@pytest.mark.parametrize("by_count", [True, False])
@pytest.mark.parametrize("name", ["drop_rare", "magnitude_rows", "dedup"])
def test_all_rows_in_float_are_the_table(name, by_count):
    layer = table(counted=True, by_count=by_count)
    served = made(name, layer, share=1.0, storage="float32")
    assert torch.allclose(rows_of(served), layer.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("low_rank", {"rank": DIM}),
        ("svd", {"rank": DIM}),
        ("fisher_svd", {"rank": DIM}),
        ("keep", {}),
        ("magnitude_columns", {"columns": DIM, "storage": "float32"}),
    ],
)
def test_full_rank_and_all_columns_are_the_table(name, settings):
    layer = table()
    assert torch.allclose(rows_of(made(name, layer, **settings)), layer.weight, atol=1e-5)


def test_all_elements_are_the_matrix_in_half_precision():
    for layer in (table(), linear()):
        served = made("magnitude_elements", layer, density=1.0)
        assert torch.allclose(rows_of(served), layer.weight, atol=2e-3)


def test_rare_rows_are_the_mean_of_what_was_dropped():
    layer = table(counted=True, by_count=True)
    served = made("drop_rare", layer, share=0.25, storage="float32", index="cut")
    kept, weights = 10, layer.counts[10:]
    mean = (layer.weight[10:].double() * weights[:, None]).sum(0) / weights.sum()
    found = rows_of(served)
    assert torch.equal(found[:kept], layer.weight[:kept])
    assert torch.allclose(found[kept:], mean.float().expand(ROWS - kept, -1), atol=1e-6)
    assert module_bytes(served) == 4 * DIM * (kept + 1)  # a tail is cut without a map


def test_dropped_rows_may_be_zero():
    layer = table(counted=True, by_count=True)
    served = made("drop_rare", layer, share=0.25, storage="float32", dropped="zero")
    assert rows_of(served)[10:].eq(0).all()


@pytest.mark.parametrize(("index", "places"), [("map", ROWS), ("ranked", 4 * (1 + 8) + 2 * 4)])
def test_a_table_in_any_order_takes_an_index_to_the_same_rows(index, places):
    order = torch.randperm(ROWS, generator=GENERATOR)
    layer = table(counted=True, by_count=True)
    mixed = table(layer.weight[order], layer.counts[order])
    settings = {"share": 0.25, "storage": "float32"}
    sorted_rows = rows_of(made("drop_rare", layer, index="cut", **settings))
    found = rows_of(made("drop_rare", mixed, index=index, **settings))
    assert torch.allclose(found, sorted_rows[order], atol=1e-6)
    small = made("drop_rare", mixed, share=0.25, index=index)
    assert module_bytes(small) == 2 * DIM * 11 + places


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("frequency_tiers", {"row_bytes": (4, 3, 2, 1)}),
        ("trellis_coded", {"row_bits": (20, 16, 8, 4)}),
        ("trellis_coded", {"row_bits": (20, 16, 12, 8, 4)}),
    ],
)
def test_a_table_in_any_order_has_the_tiers_of_one_in_order(name, sizes, sampled):
    counts = (1e6 / torch.arange(1, 2001).double()).round()
    counts[-40:] = 0  # rows that are never looked up
    layer = table(torch.randn(2000, DIM, generator=GENERATOR), counts, counted=True, by_count=True)
    order = torch.randperm(2000, generator=GENERATOR)
    mixed = table(layer.weight[order], counts[order], counted=True)
    if sampled:
        layer, mixed = layer.sampled(800), mixed.sampled(800)
    ordered = made(name, layer, rank=4, **sizes)
    found = made(name, mixed, rank=4, index="ranked", **sizes)
    assert found.stored.kind == ordered.stored.kind
    assert predicted_loss(mixed, found) == pytest.approx(predicted_loss(layer, ordered), rel=0.02)
    if not sampled:
        blocks = 8 * 4 * (len(found.index.firsts) - 1 + 8 * found.index.planes)
        assert module_bytes(found.index) == blocks + 4 * len(found.index.firsts)
        tier_of = ordered.stored.kind.tier_of(torch.arange(2000))[order]
        assert torch.equal(found.stored.kind.tier_of(found.index(torch.arange(2000))), tier_of)


@pytest.mark.parametrize("share_of_first", [(2, 0.25), (4, 0.125), (5, 0.125)])
def test_the_first_tier_is_what_is_looked_up_most(share_of_first):
    tiers, share = share_of_first
    counts = 1 + torch.randperm(800, generator=GENERATOR).double()
    layer = table(torch.randn(800, DIM, generator=GENERATOR), counts, counted=True)
    bits = tuple(range(16, 16 - 2 * tiers, -2))
    found = made("trellis_coded", layer, rank=4, row_bits=bits, index="ranked")
    tier_of = found.stored.kind.tier_of(found.index(torch.arange(800)))
    assert torch.equal(tier_of == 0, counts > 800 * (1 - share))


def test_rows_far_from_the_mean_are_kept():
    weight = 0.01 * torch.randn(ROWS, DIM, generator=GENERATOR)
    weight[[3, 17, 38]] += 5
    layer = table(weight, torch.ones(ROWS).double())
    for weighting in ("loss", "magnitude"):
        served = made(
            "magnitude_rows", layer, share=3 / ROWS, storage="float32", weighting=weighting
        )
        assert torch.equal(rows_of(served)[[3, 17, 38]], weight[[3, 17, 38]])


def test_equal_rows_are_stored_once():
    distinct = torch.randn(5, DIM, generator=GENERATOR)
    layer = table(distinct[torch.arange(ROWS) % 5])
    served = made("dedup", layer, share=5 / ROWS, storage="float32")
    assert torch.allclose(rows_of(served), layer.weight, atol=1e-6)
    assert module_bytes(served) == 4 * DIM * 6 + ROWS


def test_tiers_with_eight_bits_a_column_hold_whole_steps_of_one_direction():
    steps = torch.randint(0, 256, (ROWS,), generator=GENERATOR).float()
    direction = torch.nn.functional.normalize(torch.randn(DIM, generator=GENERATOR), dim=0)
    layer = table(steps[:, None] * direction, counted=True, by_count=True)
    found = rows_of(made("frequency_tiers", layer, rank=1, row_bytes=(1, 1, 1, 1)))
    assert torch.allclose(found, layer.weight, atol=0.3)  # the directions are 16-bit floats
    empty = rows_of(made("frequency_tiers", layer, rank=1, row_bytes=(1, 1, 1, 0)))
    first = ROWS // 2  # of the tier that has no bytes
    rare, weights = layer.weight[first:].double(), layer.counts[first:]
    mean = ((rare * weights[:, None]).sum(0) / weights.sum()).float()
    assert torch.allclose(empty[:first], layer.weight[:first], atol=0.5)
    assert torch.allclose(empty[first:], mean.expand(ROWS - first, -1), atol=0.5)


def test_bits_pay_where_rows_are_looked_up():
    counts = 1e6 / torch.arange(1, 2001).double()
    weight = torch.randn(2000, DIM, generator=GENERATOR)
    layer = table(weight, counts, counted=True, by_count=True)
    even = made("low_rank", layer, rank=DIM, storage="column_mixed3")
    tiers = made("frequency_tiers", layer, rank=DIM, row_bytes=(5, 3, 3, 2))
    assert module_bytes(tiers) < module_bytes(even)
    assert predicted_loss(layer, tiers) < 0.7 * predicted_loss(layer, even)


def test_a_sample_of_a_table_has_the_tiers_of_the_whole():
    counts = 1e6 / torch.arange(1, 2001).double()
    layer = table(torch.randn(2000, DIM, generator=GENERATOR), counts, counted=True, by_count=True)
    settings = {"rank": 4, "row_bytes": (4, 3, 2, 1)}
    whole = predicted_loss(layer, made("frequency_tiers", layer, **settings))
    sample = layer.sampled(800)
    found = predicted_loss(sample, made("frequency_tiers", sample, **settings))
    assert found == pytest.approx(whole, rel=0.2)


def test_rows_kept_columns_kept_and_storage_compose():
    weight = torch.randn(ROWS, 2, generator=GENERATOR) @ torch.randn(2, DIM, generator=GENERATOR)
    layer = table(weight, counted=True, by_count=True)
    served = made("drop_rare", layer, share=0.5, rank=2, storage="float32")
    assert torch.allclose(rows_of(served)[:20], weight[:20], atol=1e-4)
    assert served.stored.width == 2 and served.stored.rows == 21


def test_a_sample_of_a_table_predicts_the_loss_of_the_whole():
    counts = (1000 / torch.arange(1, 4001).double()).ceil()
    weight = torch.randn(4000, DIM, generator=GENERATOR)
    layer = table(weight, counts, counted=True, by_count=True)
    for name, settings in [
        ("drop_rare", {"share": 0.1, "index": "map"}),
        ("drop_rare", {"share": 0.1, "index": "cut"}),
        ("magnitude_rows", {"share": 0.1}),
        ("magnitude_elements", {"density": 0.2}),
    ]:
        whole = predicted_loss(layer, made(name, layer, **settings))
        sample = layer.sampled(1000)
        found = predicted_loss(sample, made(name, sample, **settings))
        assert found == pytest.approx(whole, rel=0.1), name


def test_columns_that_are_dropped_are_the_mean():
    layer = table()
    served = made("magnitude_columns", layer, columns=3, storage="float32")
    kept = served.decode.columns.long()
    mean = (layer.weight.double() * layer.counts[:, None]).sum(0) / layer.counts.sum()
    variance = ((layer.weight - mean).square() * layer.counts[:, None]).sum(0)
    assert set(kept.tolist()) == set(variance.argsort(descending=True)[:3].tolist())
    found = rows_of(served)
    assert torch.allclose(found[:, kept], layer.weight[:, kept], atol=1e-6)
    rest = [c for c in range(DIM) if c not in kept.tolist()]
    assert torch.allclose(found[:, rest], mean[rest].float().expand(ROWS, -1), atol=1e-6)


def test_sparse_rows_count_values_columns_and_starts():
    served = made("magnitude_elements", table(), density=0.25, dropped="zero")
    assert module_bytes(served) == 80 * 3 + 4 * (ROWS + 1)
    assert int((rows_of(served) != 0).sum()) == 80


def test_fisher_svd_with_equal_weights_is_svd():
    for layer in (table(), linear()):
        even = torch.full((len(layer.weight),), 3.0, dtype=torch.float64)
        weighted = replace(layer, statistics=replace(layer.statistics, fisher=even), _shared={})
        for rank in (1, 3):
            plain, found = (made("svd", layer, rank=rank), made("fisher_svd", weighted, rank=rank))
            assert torch.allclose(rows_of(found), rows_of(plain), atol=1e-5)


def test_fisher_svd_is_closest_where_gradients_are_large():
    layer = table()
    fisher = torch.full((ROWS,), 1e-6, dtype=torch.float64)
    fisher[:2] = 1  # two rows span a plane
    weighted = replace(layer, statistics=replace(layer.statistics, fisher=fisher), _shared={})
    off = rows_of(made("fisher_svd", weighted, rank=2)) - layer.weight
    assert off[:2].abs().max() < 0.05 < off[2:].abs().max()


def test_a_monarch_matrix_is_found_again():
    left, right = (torch.randn(*s, generator=GENERATOR) for s in ((3, 4, 4), (4, 3, 3)))
    weight = torch.einsum("koi,ikq->okiq", left, right).reshape(12, 12)
    layer = linear(12, 12, weight)
    served = made("monarch", layer, blocks=4, storage="float32")
    assert torch.allclose(rows_of(served), weight, atol=1e-5)
    x = torch.randn(5, 12, generator=GENERATOR)
    assert torch.allclose(served(x), x @ weight.T + served.bias, atol=1e-4)
    assert module_bytes(served) == 4 * (12 * 7 + 12)


def test_a_correction_of_full_rank_makes_up_for_all_that_rounding_lost():
    layer = linear()
    served = made("eora", layer, rank=16, storage="row_int2")
    assert torch.allclose(rows_of(served), layer.weight, atol=5e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_correction_of_rank_r_loses_the_eigenvalues_that_are_left_out(bias):
    layer = linear()
    if not bias:
        layer = replace(layer, spec=replace(layer.spec, bias=False), bias=None)
    moment = layer.inputs.covariance if bias else layer.inputs.second
    plain = predicted_loss(layer, made("row_int2", layer))
    lost = (layer.weight - rows_of(made("row_int2", layer))).double()
    spectrum = torch.linalg.eigvalsh(lost @ moment @ lost.T).flip(0)
    losses = []
    for rank in (2, 4, 8):
        served = made("eora", layer, rank=rank, storage="row_int2")
        off = (layer.weight - rows_of(served)).double()
        error = float((off @ moment * off).sum())
        assert error == pytest.approx(float(spectrum[rank:].sum()), rel=1e-2)
        losses.append(predicted_loss(layer, served))
    assert losses == sorted(losses, reverse=True) and losses[0] < plain


@pytest.mark.parametrize("make", [table, linear])
def test_low_rank_and_a_rounded_rest_are_better_than_rounding_alone(make):
    layer = make()
    together = made("low_rank_quantized", layer, rank=2, storage="column_mixed2")
    alone = made("column_quantized", layer, storage="column_mixed2")
    assert predicted_loss(layer, together) < predicted_loss(layer, alone)


def test_bytes_multiply_to_what_rounded_numbers_do():
    layer = linear()
    served = made("dense_int8", layer)
    x = torch.randn(7, 16, generator=GENERATOR)
    low, high = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True).clamp_min(0)
    assert ((served(x) - x @ rows_of(served).T - served.bias).abs() < (high - low) / 8).all()
    coarse = torch.arange(16.0)[None] * 17  # already on a grid of 256 steps
    expected = coarse @ rows_of(served).T + served.bias
    assert torch.allclose(served(coarse), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["dense_int8", "half"])
def test_rounding_the_inputs_is_part_of_the_predicted_loss(name):
    layer = linear()
    x = torch.randn(20_000, 16, generator=GENERATOR) * torch.linspace(0.1, 3, 16)
    second, spread = (x.T @ x / len(x)).double(), x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)
    statistics = LinearStatistics(x.mean(0).double(), second, spread=float(spread.square().mean()))
    layer = replace(layer, statistics=statistics, _shared={})
    served = made(name, layer)
    real = (served(x) - (x @ layer.weight.T + layer.bias)).square().sum(1).mean() / 2
    assert predicted_loss(layer, served) == pytest.approx(float(real), rel=0.1)
