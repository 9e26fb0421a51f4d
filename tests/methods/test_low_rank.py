from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedcomp.errors import BadSettings
from embedcomp.methods import low_rank
from embedcomp.methods.baselines import svd
from embedcomp.methods.parts.factors import output_basis
from embedcomp.sensitivity.algebra import (
    DAMPING,
    basis,
    moments,
    roots,
)
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    LinearStatistics,
    TableSpec,
    TableStatistics,
)
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.rows import keeping_unrounded

ROWS, DIM, INPUTS, OUTPUTS = 200, 8, 12, 9


def psd(n, seed):
    root = torch.randn(n, n, generator=torch.manual_seed(seed), dtype=torch.float64)
    return root @ root.T / n


def table(gradient=None, offset=3.0):
    """Rows around a mean, a few of them looked up far more often than the others."""
    generator = torch.manual_seed(0)
    scales = 2.0 ** -torch.arange(DIM)
    weight = torch.randn(ROWS, DIM, generator=generator) * scales + offset
    counts = (1000 / torch.arange(1, ROWS + 1)).long().double()
    spec = TableSpec(name="t", rows=ROWS, dim=DIM, pooling="mean")
    return Layer(spec, weight, None, TableStatistics(counts, gradient))


def linear(gradient=None, activation=None):
    """A layer, and inputs [n, i] that its statistics are those of."""
    generator = torch.manual_seed(1)
    inputs = torch.randn(500, INPUTS, generator=generator) * 2.0 ** -torch.arange(INPUTS) + 1
    x = inputs.double()
    statistics = LinearStatistics(x.mean(0), x.T @ x / len(x), gradient)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
    bias = torch.randn(OUTPUTS, generator=generator)
    spec = LinearSpec(name="l", inputs=INPUTS, outputs=OUTPUTS, bias=True, activation=activation)
    return Layer(spec, weight, bias, statistics), inputs


def weighted_error(layer, served):
    error = (served.to_float() - layer.weight).double().square().sum(1)
    return float(layer.counts @ error / layer.counts.sum())


def output_error(layer, served, inputs):
    wanted = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
    return float((served(inputs) - wanted).double().square().sum(1).mean())


@pytest.mark.parametrize("method", [low_rank, svd])
def test_full_rank_in_float32_is_the_original(method):
    layer = table()
    served = method.compress(layer, method.Settings(rank=DIM))
    assert torch.allclose(served.to_float(), layer.weight, atol=1e-5)
    layer, _ = linear()
    served = method.compress(layer, method.Settings(rank=OUTPUTS))
    weight, bias = served.to_float()
    assert torch.allclose(weight, layer.weight, atol=1e-5)
    assert torch.allclose(bias, layer.bias, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_a_table_loses_exactly_the_eigenvalues_left_out(rank):
    layer = table()
    _, covariance = moments(layer.weight, layer.counts)
    dropped = torch.linalg.eigvalsh(covariance).flip(0)[rank:].sum()
    served = low_rank.compress(layer, low_rank.Settings(rank=rank, weighting="output"))
    assert weighted_error(layer, served) == pytest.approx(float(dropped), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_linear_layer_loses_exactly_the_eigenvalues_left_out(rank):
    layer, inputs = linear()
    covariance = layer.weight.double() @ layer.inputs.covariance @ layer.weight.double().T
    dropped = torch.linalg.eigvalsh(covariance).flip(0)[rank:].sum()
    served = low_rank.compress(layer, low_rank.Settings(rank=rank, weighting="output"))
    assert output_error(layer, served, inputs) == pytest.approx(float(dropped), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rank", range(1, 8))
def test_mimicking_outputs_is_never_worse_than_svd(rank):
    layer = table()
    ours = low_rank.compress(layer, low_rank.Settings(rank=rank, weighting="output"))
    theirs = svd.compress(layer, svd.Settings(rank=rank))
    assert weighted_error(layer, ours) <= weighted_error(layer, theirs) + 1e-9
    layer, inputs = linear()
    ours = low_rank.compress(layer, low_rank.Settings(rank=rank, weighting="output"))
    theirs = svd.compress(layer, svd.Settings(rank=rank))
    assert output_error(layer, ours, inputs) <= output_error(layer, theirs, inputs) + 1e-9


@torch.no_grad()
@pytest.mark.parametrize("make", [table, lambda gradient=None: linear(gradient)[0]])
def test_directions_that_the_loss_does_not_feel_are_left_out(make):
    plain = make()
    if isinstance(plain.spec, TableSpec):
        _, covariance = moments(plain.weight, plain.counts)
    else:
        weight = plain.weight.double()
        covariance = weight @ plain.inputs.covariance @ weight.T
    largest = basis(covariance, None).encoder[:, :2]
    layer = make(torch.eye(len(covariance)).double() - largest @ largest.T)
    by = {
        weighting: predicted_loss(
            layer, low_rank.compress(layer, low_rank.Settings(rank=2, weighting=weighting))
        )
        for weighting in ("loss", "output")
    }
    assert by["loss"] < 0.3 * by["output"]


def test_a_predicted_loss_is_never_negative():
    """Sums that cancel can leave a measured matrix with an eigenvalue just below 0."""
    layer = table(gradient=-1e-18 * torch.eye(DIM).double())
    assert predicted_loss(layer, svd.compress(layer, svd.Settings(rank=2))) == 0.0


def test_without_gradients_the_loss_is_the_output():
    layer = table()
    by_loss, by_output = (
        low_rank.compress(layer, low_rank.Settings(rank=2, weighting=w)) for w in ("loss", "output")
    )
    assert torch.equal(by_loss.to_float(), by_output.to_float())


def test_svd_is_the_truncated_decomposition():
    layer = table()
    u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
    served = svd.compress(layer, svd.Settings(rank=3))
    assert torch.allclose(served.to_float(), u[:, :3] * s[:3] @ v[:3], atol=1e-4)


@torch.no_grad()
def test_the_decoder_makes_up_for_rounded_codes():
    layer = table()
    plain = low_rank.compress(layer, low_rank.Settings(rank=DIM, storage="float16"))
    served = low_rank.compress(layer, low_rank.Settings(rank=DIM, storage="column_int4"))
    unfitted = plain.decode(served.stored.to_float(), torch.ones(1, 1)) - layer.weight
    before = float(layer.counts @ unfitted.double().square().sum(1) / layer.counts.sum())
    assert weighted_error(layer, served) < before


@torch.no_grad()
@pytest.mark.parametrize("storage", ["float32", "column_int8", "column_int4"])
def test_the_mean_output_of_a_linear_layer_is_kept(storage):
    layer, inputs = linear()
    with keeping_unrounded():
        served = low_rank.compress(layer, low_rank.Settings(rank=2, storage=storage))
    bias, rounded = served.stored_bias.unrounded[0], served.bias
    wanted = torch.nn.functional.linear(inputs, layer.weight, layer.bias).mean(0)
    assert torch.allclose((served(inputs) - rounded + bias).mean(0), wanted, atol=1e-4)
    if storage == "float32":
        assert torch.equal(rounded, bias)
    else:
        assert (rounded - bias).abs().max() <= (bias.max() - bias.min()) / 509


@torch.no_grad()
def test_an_activation_between_the_factors_is_the_one_that_follows():
    layer, inputs = linear(activation="relu")
    served = low_rank.compress(layer, low_rank.Settings(rank=3, activation=True))
    codes = torch.relu(inputs @ served.first.to_float() + served.middle)
    assert torch.allclose(served(inputs), codes @ served.second.to_float().T + served.bias)
    # what the activation sees is the output in its leading directions
    encoder = output_basis(layer, "loss").encoder[:, :3].float()
    output = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
    before = inputs @ served.first.to_float() + served.middle
    assert torch.allclose(before, output @ encoder, atol=1e-4)
    layer, _ = linear()
    with pytest.raises(BadSettings, match="l has no known activation"):
        low_rank.compress(layer, low_rank.Settings(rank=3, activation=True))


def test_an_activation_between_the_factors_is_offered_where_tuning_follows():
    spec = linear(activation="relu")[0].spec
    assert not any(settings.activation for settings in low_rank.candidates(spec))
    offered = low_rank.candidates(replace(spec, tuned=True))
    assert {s.rank for s in offered if s.activation} == {s.rank for s in offered} - {0}
    unknown = replace(spec, tuned=True, activation=None)
    assert not any(settings.activation for settings in low_rank.candidates(unknown))


@torch.no_grad()
@pytest.mark.parametrize("storage", ["float32", "column_int8"])
def test_what_follows_the_activation_is_fitted_to_it(storage):
    """No other second factor and bias are closer, over the inputs that it is fitted on."""
    layer, _ = linear(activation="relu")
    served = low_rank.compress(layer, low_rank.Settings(rank=3, storage=storage, activation=True))
    inputs = layer.inputs.drawn
    wanted = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
    known = torch.cat([served.codes(inputs), torch.ones(len(inputs), 1)], 1)
    best = known @ torch.linalg.lstsq(known, wanted).solution
    assert output_error(layer, served, inputs) < 1.01 * float(
        (best - wanted).square().sum(1).mean()
    )


def test_drawn_inputs_have_the_moments_of_the_layers():
    statistics = linear()[0].inputs
    drawn = statistics.drawn.double()
    assert torch.allclose(drawn.mean(0), statistics.mean, atol=1e-5)
    covariance = torch.cov(drawn.T, correction=0)
    assert (covariance - statistics.covariance).norm() < 0.1 * statistics.covariance.norm()
    assert torch.equal(drawn, linear()[0].inputs.drawn.double())


def test_a_large_mean_does_not_drown_a_small_covariance():
    rows = torch.randn(5000, 3, generator=torch.manual_seed(0), dtype=torch.float64) + 1e6
    mean, covariance = moments(rows, None)
    assert torch.allclose(mean, rows.mean(0))
    assert torch.allclose(covariance, torch.cov(rows.T, correction=0), rtol=1e-6)


def test_a_basis_decodes_what_it_encodes():
    found = basis(psd(6, 3), roots(psd(6, 4)))
    assert torch.allclose(found.encoder @ found.decoder, torch.eye(6).double(), atol=1e-9)
    assert torch.allclose(found.decoder.norm(dim=1), torch.ones(6).double())
    assert (found.worth.diff() <= 0).all()


def test_a_basis_is_worth_what_leaving_it_out_costs():
    covariance, metric = psd(6, 3), psd(6, 4)
    found = basis(covariance, roots(metric))
    damped = (1 - DAMPING) * metric + DAMPING * metric.diagonal().mean() * torch.eye(6).double()
    lost = torch.eye(6).double() - found.encoder[:, :2] @ found.decoder[:2]
    error = (lost.T @ covariance @ lost @ damped).trace()
    assert float(error) == pytest.approx(float(found.worth[2:].sum()))
