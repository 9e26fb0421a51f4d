"""What each method makes, against the same found slowly in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from embedcomp import methods
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import fill_linear, output_basis, pooled_basis
from embedcomp.methods.parts.rotation import WORDS, rotation
from embedcomp.modules.embedded import Block, Reader, ReadsEmbedded
from embedcomp.planning.folding import folded, narrowed
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    LinearStatistics,
    TableSpec,
    TableStatistics,
)
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.kmeans import nearest, words_of
from embedcomp.storage.pursuit import dictionary_of, pursued, summed
from embedcomp.storage.rows import StoredRows

ROWS, DIM, INPUTS, OUTPUTS = 60, 6, 32, 24
SEEDS = range(3)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def metric(n: int, seed: int) -> Tensor:
    """A matrix [n, n] by which errors cost from 1 to 100, by direction."""
    axes = torch.linalg.qr(normal(n, n, seed=seed))[0]
    return axes * torch.logspace(0, 2, n, dtype=torch.float64) @ axes.T


def table(gradient: Tensor | None = None, weight: Tensor | None = None, seed: int = 0) -> Layer:
    """Rows around a mean, some of which are looked up a thousand times as often as others."""
    weight = normal(ROWS, DIM, seed=seed) + 0.5 if weight is None else weight
    counts = (1000 / torch.arange(1, len(weight) + 1)).double()
    counts = counts[torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))]
    spec = TableSpec(name="t", rows=len(weight), dim=weight.shape[1], pooling="sum")
    return Layer(spec, weight.float(), None, TableStatistics(counts, gradient))


def linear(bias: bool = True, seed: int = 0) -> Layer:
    """Inputs and outputs of which some directions matter a hundred times as much as others."""
    mean, covariance = normal(INPUTS, seed=seed), metric(INPUTS, seed + 10)
    spec = LinearSpec(name="l", inputs=INPUTS, outputs=OUTPUTS, bias=bias)
    second = covariance + mean.outer(mean)
    statistics = LinearStatistics(mean, second, metric(OUTPUTS, seed + 20))
    weight = normal(OUTPUTS, INPUTS, seed=seed + 30).float()
    return Layer(spec, weight, torch.zeros(OUTPUTS) if bias else None, statistics)


def made(name, layer, **settings):
    method = methods.get(name)
    return method.compress(layer, method.Settings(**settings))


def root(symmetric: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(symmetric)
    return axes * values.sqrt() @ axes.T


def cut(matrix: Tensor, rank: int) -> Tensor:
    """The closest matrix of this rank (Eckart and Young)."""
    left, scale, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * scale[:rank] @ right[:rank]


def best_product(layer: Layer, wanted: Tensor, rank: int) -> Tensor:
    """The weight of this rank that loses least in a linear layer instead of another one."""
    left, right = root(layer.gradient), root(layer.error_moment)
    return torch.linalg.inv(left) @ cut(left @ wanted @ right, rank) @ torch.linalg.inv(right)


def cost(layer: Layer, weight: Tensor) -> float:
    """E[e^T G e] of a linear layer that is served with this weight, and keeps its mean output."""
    off = (layer.weight - weight).double()
    return float((layer.gradient @ off * (off @ layer.error_moment)).sum())


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_correction_of_its_rank_loses_less_than_eoras(bias, seed):
    layer = linear(bias, seed)
    served = made("eora", layer, rank=4, storage="row_int2")
    rounded = served.stored.to_float().double()
    best = rounded + best_product(layer, layer.weight - rounded, 4)
    assert cost(layer, served.to_float()[0]) == pytest.approx(cost(layer, best), rel=1e-3)
    plain = made("eora", layer, rank=4, storage="row_int2", weighting="output")
    assert cost(layer, plain.to_float()[0]) > 1.2 * cost(layer, best)


def with_signals(seed: int, felt_by: str) -> Layer:
    """A weight of two products of rank 2, of which the loss feels one alone.

    Args:
        felt_by: "outputs" or "inputs", half of which cost a thousand times as much as the others.
    """
    n, other = (OUTPUTS, INPUTS) if felt_by == "outputs" else (INPUTS, OUTPUTS)
    felt = torch.arange(n)[:, None] < n // 2
    parts = [normal(n, 2, seed=seed + i) @ normal(2, other, seed=seed + i + 1) for i in (10, 20)]
    weight = parts[0] * felt + parts[1] * ~felt + 0.05 * normal(n, other, seed=seed)
    costs, even = torch.where(felt[:, 0], 1.0, 1e-3).double().diag(), torch.eye(other).double()
    if felt_by == "inputs":
        weight, costs, even = weight.T, even, costs
    spec = LinearSpec(name="l", inputs=INPUTS, outputs=OUTPUTS, bias=True)
    statistics = LinearStatistics(torch.zeros(INPUTS).double(), even, costs)
    return Layer(spec, weight.float(), torch.zeros(OUTPUTS), statistics)


def by_turns(layer: Layer, rank: int, storage: str, turns: int) -> list[float]:
    """What low rank and a rounded rest cost after each turn of fitting one to the other."""
    rest, costs = torch.zeros(OUTPUTS, INPUTS).double(), []
    for _ in range(turns):
        product = best_product(layer, layer.weight - rest, rank)
        stored = StoredRows(OUTPUTS, INPUTS, storage)
        weights = layer.gradient.diagonal(), layer.error_moment.diagonal()
        stored.fill(layer.weight - product, *weights)
        rest = stored.to_float().double()
        costs.append(cost(layer, product + rest))
    return costs


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("storage", ["column_mixed2", "column_mixed3"])
def test_a_product_and_a_rounded_rest_are_fitted_to_each_other_by_turns(bias, storage):
    found, first, best = 0.0, 0.0, 0.0
    for layer in (linear(bias, seed) for seed in SEEDS):
        costs = by_turns(layer, 4, storage, turns=4)
        first, best = first + costs[0], best + min(costs)
        served = made("low_rank_quantized", layer, rank=4, storage=storage)
        found += cost(layer, served.to_float()[0])
    assert found < 0.7 * first and found < 1.2 * best


@torch.no_grad()
@pytest.mark.parametrize(
    ("felt_by", "storage"),
    [("outputs", "row_int2"), ("outputs", "column_mixed2"), ("inputs", "column_mixed2")],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_product_and_rest_are_for_what_the_loss_feels(felt_by, storage, seed):
    layer = with_signals(seed, felt_by)
    served = made("low_rank_quantized", layer, rank=2, storage=storage)
    best = min(by_turns(layer, 2, storage, turns=4))
    assert cost(layer, served.to_float()[0]) < 1.2 * best


@torch.no_grad()
@pytest.mark.parametrize("kind", ["table", "linear"])
@pytest.mark.parametrize("rank", [1, 3])
def test_fisher_svd_is_the_decomposition_of_weighted_rows(kind, rank):
    layer = table() if kind == "table" else linear()
    rows = len(layer.weight)
    fisher = torch.logspace(0, 1, rows, dtype=torch.float64)
    fisher[::3] = 0  # rows without a gradient weigh as little as the least of the others
    layer = replace(layer, statistics=replace(layer.statistics, fisher=fisher))
    served = made("fisher_svd", layer, rank=rank, storage="float32")
    found = served.to_float() if kind == "table" else served.to_float()[0]
    least = fisher[fisher > 0].min()
    r = fisher.clamp_min(least).sqrt()[:, None]
    wanted = cut(r * layer.weight, rank) / r
    off = (found - wanted).norm() / wanted.norm()
    assert off < (1e-5 if kind == "table" else 1e-2)  # a layer's metric is damped


def test_rows_without_any_gradient_are_decomposed_as_they_are():
    layer = table()
    layer = replace(layer, statistics=replace(layer.statistics, fisher=torch.zeros(ROWS).double()))
    found = made("fisher_svd", layer, rank=2, storage="float32").to_float()
    assert torch.allclose(found.double(), cut(layer.weight.double(), 2), atol=1e-5)


def felt_direction(seed: int = 5) -> tuple[Tensor, Tensor]:
    """An orthonormal pair of directions [DIM]."""
    return tuple(torch.linalg.qr(normal(DIM, 2, seed=seed))[0].T)


def test_rows_that_differ_where_the_loss_does_not_feel_it_are_stored_once():
    felt, unfelt = felt_direction()
    kinds = torch.tensor([-3.0, -1.0, 1.0, 3.0]).double()[torch.arange(ROWS) % 4]
    weight = kinds[:, None] * felt + 5 * normal(ROWS, 1, seed=1) * unfelt
    layer = table(100 * felt.outer(felt), weight)
    found = made("dedup", layer, share=4 / ROWS, storage="float32").to_float().double()
    for kind in kinds.unique():
        alike = kinds == kind
        counts = layer.counts[alike, None]
        mean = (layer.weight[alike] * counts).sum(0) / counts.sum()
        assert torch.allclose(found[alike], mean, atol=1e-5)


def test_rows_as_far_apart_in_the_loss_are_as_far_apart_for_dedup():
    """Rows around 15 points of a lattice whose sides cost as much in every direction."""
    axes = torch.linalg.qr(normal(2, 2, seed=4))[0]
    costs = torch.tensor([100.0, 1.0]).double()
    points = torch.cartesian_prod(torch.arange(5), torch.arange(3)).repeat(4, 1)
    rows = (points + 0.01 * normal(60, 2, seed=3)) / costs.sqrt() @ axes.T
    layer = table(axes * costs @ axes.T, rows)
    served = made("dedup", layer, share=15 / 60, storage="float32")
    places = served.index.places
    assert torch.equal(places[:, None] == places, (points[:, None] == points).all(2))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_hardly_fewer_rows_are_stored_than_there_is_room_for(share):
    layer = table(metric(DIM, 2), normal(400, DIM, seed=3))
    served = made("dedup", layer, share=share, storage="float32")
    assert 0.95 * share * 400 <= len(served.index.places.unique()) <= share * 400


@pytest.mark.parametrize("dropped", ["mean", "zero"])
@pytest.mark.parametrize("weighting", ["loss", "magnitude"])
def test_the_rows_that_are_kept_are_those_that_cost_most_to_drop(dropped, weighting):
    gradient = metric(DIM, 1)
    layer = table(gradient)
    mean = (layer.weight.double() * layer.counts[:, None]).sum(0) / layer.counts.sum()
    costs = []
    for row, count in zip(layer.weight.double(), layer.counts, strict=True):
        off = row if dropped == "zero" else row - mean
        costs.append(float(count * (off @ gradient @ off) if weighting == "loss" else off @ off))
    wanted = sorted(range(ROWS), key=lambda row: -costs[row])[:15]
    settings = {"share": 15 / ROWS, "storage": "float32"}
    served = made("magnitude_rows", layer, dropped=dropped, weighting=weighting, **settings)
    kept = (served.to_float() == layer.weight).all(1).nonzero()[:, 0].tolist()
    assert kept == sorted(wanted)


def test_in_a_sample_rows_are_kept_by_their_own_counts():
    """A row of a sample has the counts of all that it stands for, but takes one row to store."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.cat([torch.full((40,), 20.0), torch.full((960,), 12.0)]).double()
    weight = torch.randn(1000, DIM, generator=generator)
    weight /= weight.norm(dim=1, keepdim=True)
    spec = TableSpec(name="t", rows=1000, dim=DIM, pooling="sum")
    sample = Layer(spec, weight, None, TableStatistics(counts)).sampled(80)
    for name in ("magnitude_rows", "drop_rare"):
        served = made(name, sample, share=0.04, storage="float32", dropped="zero")
        kept = (served.to_float() == sample.weight).all(1)
        assert torch.equal(kept, sample.stands_for == 1), name


@torch.no_grad()
@pytest.mark.parametrize("dropped", ["mean", "zero"])
@pytest.mark.parametrize("count", [1, 3])
def test_no_other_columns_of_a_table_lose_less(dropped, count):
    gradient = torch.logspace(2, 0, DIM, dtype=torch.float64).diag()
    weight = normal(ROWS, DIM, seed=2) * torch.logspace(0, 1, DIM).double()
    weight[:, 4] += 30  # far from zero, so that only the mean can stand for it
    layer = table(gradient, weight)
    shares = layer.counts / layer.counts.sum()
    mean = shares @ layer.weight.double() if dropped == "mean" else torch.zeros(DIM).double()
    lost = shares @ (layer.weight.double() - mean).square() * gradient.diagonal()  # by column
    best = min(
        float(lost.sum() - lost[list(kept)].sum()) for kept in combinations(range(DIM), count)
    )
    served = made("magnitude_columns", layer, columns=count, dropped=dropped, storage="float32")
    assert predicted_loss(layer, served) == pytest.approx(best / 2, rel=1e-4)


def left(rows: Tensor, weights: Tensor, atoms: Tensor) -> float:
    """Weighted squared errors of rows approximated by sums of two atoms."""
    which, by = pursued(rows, atoms, 2, rounded=False)
    off = summed(atoms.double(), which, by) - rows
    return float(weights @ off.square().sum(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dictionary_is_fitted_to_the_sums_that_are_made_of_it(seed):
    atoms, generator = normal(24, 8, seed=seed), torch.Generator().manual_seed(seed)
    which = torch.stack([torch.randperm(24, generator=generator)[:2] for _ in range(600)])
    rows = summed(atoms, which, normal(600, 2, seed=seed + 1)).float()
    even = torch.ones(600).double()
    begun = left(rows, even, words_of(rows, even, 24))
    assert left(rows, even, dictionary_of(rows, even, 24, 2)) < 0.6 * begun


def test_a_dictionary_is_for_the_rows_that_matter():
    rows, weights = normal(400, 8, seed=0).float(), torch.ones(400).double()
    weights[:40] = 1000
    even, fitted = (dictionary_of(rows, w, 24, 2) for w in (torch.ones(400).double(), weights))
    assert left(rows, weights, fitted) < 0.5 * left(rows, weights, even)


def quantized(rows: Tensor, weights: Tensor) -> Tensor:
    """Rows of two groups of two columns, each as the nearest of its group's codewords."""
    parts = []
    for group in rows.float().split(2, 1):
        words = words_of(group.contiguous(), weights, WORDS)
        codes = torch.empty(len(rows), dtype=torch.uint8)
        nearest(group.contiguous(), words, codes)
        parts.append(words[codes.long()])
    return torch.cat(parts, 1).double()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_rotation_undoes_the_turn_that_mixes_two_groups(seed, noise):
    """Each group has as many different rows as there are codewords, so right groups are exact."""
    places = torch.arange(1024)
    groups = [torch.linalg.qr(normal(16, 2, seed=seed + i))[0] for i in (1, 2)]
    rows = torch.cat([groups[0][places % 16], groups[1][places // 16 % 16]], 1)
    rows = rows * torch.tensor([8.0, 4.0, 7.6, 4.4]).double()
    turn = torch.eye(4).double()
    turn[0, 0] = turn[2, 2] = 0.9**0.5
    turn[2, 0], turn[0, 2] = 0.1**0.5, -(0.1**0.5)
    weights = torch.ones(1024).double()
    if noise:  # rows that count for nothing
        weights[768:] = 1e-9
        rows[768:] += 30 * noise * normal(256, 4, seed=seed)
    mixed = rows @ turn
    found = mixed @ rotation(mixed, weights, [0, 2, 4])
    errors = [float(weights @ (quantized(x, weights) - x).square().sum(1)) for x in (found, mixed)]
    assert errors[0] < 0.01 * errors[1]


@torch.no_grad()
@pytest.mark.parametrize("by_loss", [True, False])
def test_a_shared_decoder_is_for_the_tables_that_matter(by_loss):
    """Rows of two tables around their means in one direction each; one table matters more."""
    directions = felt_direction()
    tables = []
    for direction, weight in zip(directions, (1.0, 0.03), strict=True):
        layer = table(weight=normal(ROWS, 1, seed=1) * direction + 7)
        gradient = weight * torch.eye(DIM).double() if by_loss else None
        counts = layer.counts if by_loss else weight * layer.counts
        tables.append(replace(layer, statistics=TableStatistics(counts, gradient)))
    weighting = "loss" if by_loss else "output"
    for order in (tables, tables[::-1]):
        found = pooled_basis([replace(t, _shared={}) for t in order], weighting).decoder[0]
        assert abs(float(found @ directions[0])) > 0.99


@torch.no_grad()
def test_no_fewer_numbers_say_better_what_is_left_of_a_table():
    """Stored rows count as often as the rows that they stand for are looked up."""
    gradient = metric(DIM, 1)
    layer = table(gradient)
    served = made("drop_rare", layer, share=0.5, rank=2, storage="float32")
    kept = torch.argsort(layer.counts, descending=True)
    rest, kept = kept[ROWS // 2 :], kept[: ROWS // 2]
    shares = layer.counts / layer.counts.sum()
    rare = shares[rest] @ layer.weight[rest].double() / shares[rest].sum()
    stored = torch.cat([layer.weight[kept].double(), rare[None]])
    weights = torch.cat([shares[kept], shares[rest].sum()[None]])
    centred = stored - weights @ stored
    lost = (
        centred
        - cut(weights.sqrt()[:, None] * centred @ root(gradient), 2)
        @ torch.linalg.inv(root(gradient))
        / weights.sqrt()[:, None]
    )
    best = float(weights @ (lost @ gradient * lost).sum(1))
    off = served.to_float().double()[[*kept.tolist(), int(rest[0])]] - stored
    assert float(weights @ (off @ gradient * off).sum(1)) == pytest.approx(best, rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("felt_by", ["outputs", "inputs"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("column_quantized", {"storage": "column_mixed2"}),
        ("eora", {"rank": 2, "storage": "column_mixed3"}),
    ],
)
def test_rounding_is_finest_where_the_loss_feels_it(name, settings, felt_by):
    layer = with_signals(3, felt_by)
    even = LinearStatistics(layer.inputs.mean, torch.eye(INPUTS).double())
    blind = replace(layer, statistics=even, _shared={})
    found, plain = (cost(layer, made(name, of, **settings).to_float()[0]) for of in (layer, blind))
    assert found < 0.7 * plain


@torch.no_grad()
def test_the_factors_of_a_layer_are_rounded_by_what_their_errors_cost():
    """Both factors have rows that cost nothing, ten times as large as the others."""
    rows = torch.arange(INPUTS) % 2 == 0, torch.arange(OUTPUTS) % 2 == 0
    first, second = (
        normal(len(felt), 3, seed=seed) * torch.where(felt, 1.0, 10.0)[:, None]
        for seed, felt in enumerate(rows)
    )
    covariance, gradient = (torch.where(felt, 1.0, 1e-9).double().diag() for felt in rows)
    spec = LinearSpec(name="l", inputs=INPUTS, outputs=OUTPUTS, bias=False)
    statistics = LinearStatistics(torch.zeros(INPUTS).double(), covariance, gradient)
    layer = Layer(spec, (second @ first.T).float(), None, statistics)
    found = made("low_rank", layer, rank=3, storage="column_int4").to_float()[0]
    assert cost(layer, found) < 0.02 * cost(layer, torch.zeros_like(layer.weight))


@torch.no_grad()
def test_the_second_factor_makes_up_for_rounding_the_first():
    layer = linear()
    layer = replace(layer, weight=best_product(layer, layer.weight.double(), 4).float())
    basis = output_basis(layer, "loss")
    costs = []
    for refit in (True, False):
        served = build.low_rank(layer.spec, 4, "column_mixed3")
        fill_linear(served, layer, basis, 4, refit=refit)
        costs.append(cost(layer, served.to_float()[0]))
    found = made("low_rank", layer, rank=4, storage="column_mixed3")
    assert cost(layer, found.to_float()[0]) == pytest.approx(costs[0])
    assert costs[0] < 0.95 * costs[1]


@torch.no_grad()
def test_a_reader_of_codes_knows_the_statistics_of_the_codes():
    """A reader of codes gets statistics of codes, row by row, once a decoder is folded in."""
    of_table, dense = table(), normal(ROWS, 2, seed=8)
    bag = made("low_rank", of_table, rank=2, storage="float32")
    shares = of_table.counts / of_table.counts.sum()

    def statistics(x: Tensor) -> LinearStatistics:
        return LinearStatistics(shares @ x, (x * shares[:, None]).T @ x)

    spec = LinearSpec(name="l", inputs=DIM + 2, outputs=3, bias=True)
    rows = torch.cat([of_table.weight.double(), dense], 1)
    weight, bias = normal(3, DIM + 2, seed=1).float(), torch.ones(3)
    reader = Reader(ReadsEmbedded(nn.Linear(DIM + 2, 3)), (Block("t", ("f",), DIM),))
    layer = Layer(spec, weight, bias, statistics(rows))
    found = narrowed(layer, reader, folded(reader, {"t": (of_table, bag)}, {"f"}))
    codes = torch.cat([bag.codes_of_rows().double(), dense], 1)
    served = torch.cat([bag.to_float().double(), dense], 1)
    wanted = served @ weight.T.double() + bias
    assert torch.allclose(codes @ found.weight.T.double() + found.bias, wanted, atol=1e-4)
    assert torch.allclose(found.inputs.mean, statistics(codes).mean, atol=1e-5)
    assert torch.allclose(found.inputs.second, statistics(codes).second, atol=1e-4)
