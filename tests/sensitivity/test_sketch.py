"""Second moments of wide inputs, against the matrices that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from embedcomp import methods
from embedcomp.modules.embedded import Decoder
from embedcomp.planning import folding
from embedcomp.sensitivity import sketch, statistics
from embedcomp.sensitivity.layer import LinearStatistics
from embedcomp.sensitivity.layers import find
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.sensitivity.sketch import (
    DIRECTIONS,
    Root,
    Sketched,
    root_of,
)
from embedcomp.sensitivity.statistics import Statistics, measure

ROWS, INPUTS, OUTPUTS, RANK = 700, 300, 12, 20


def rows(rank=RANK, noise=0.0):
    """Inputs float32 [ROWS, INPUTS] in a plane of `rank` dimensions, and noise on them."""
    generator = torch.manual_seed(0)
    scales = 1.5 ** -torch.arange(rank)
    codes = torch.randn(ROWS, rank, generator=generator) * scales
    plane = torch.randn(rank, INPUTS, generator=generator)
    return codes @ plane + 0.3 + noise * torch.randn(ROWS, INPUTS, generator=generator)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.out = nn.Linear(INPUTS, OUTPUTS), nn.Linear(OUTPUTS, 1)

    def forward(self, x):
        return self.out(torch.relu(self.first(x)))


def measured(x, exact, monkeypatch, pieces=1):
    """The first layer and its statistics: whole second moments, or sketches."""
    monkeypatch.setattr(statistics, "MOST_EXACT", INPUTS if exact else INPUTS - 1)
    model = Wide()
    found = find(model, {})
    total = Statistics()
    for part in x.chunk(pieces):
        total += measure(model, part.split(100), found, lambda model, x: model(x))
    return total, total.measured(found).layers["first"]


def matrix(moment):
    """The whole matrix, an input at a time."""
    return moment @ torch.eye(INPUTS, dtype=torch.float64)


def close(a, b, share):
    return float((a - b).norm() / b.norm()) < share


def test_a_sketch_is_exact_where_inputs_lie_in_a_plane(monkeypatch):
    x = rows()
    _, layer = measured(x, False, monkeypatch)
    exact = x.double().T @ x.double() / ROWS
    assert isinstance(layer.inputs.second, Sketched)
    assert close(matrix(layer.inputs.second), exact, 1e-5)
    mean = x.double().mean(0)
    assert close(matrix(layer.inputs.covariance), exact - mean.outer(mean), 1e-5)


def test_a_sketch_keeps_every_inputs_variance(monkeypatch):
    """Whatever lies outside its directions: all inputs vary by themselves here."""
    generator = torch.manual_seed(0)
    x = torch.randn(ROWS, INPUTS, generator=generator) * torch.linspace(0.1, 3, INPUTS) + 2
    monkeypatch.setattr(sketch, "DIRECTIONS", 8)
    sketch.directions.cache_clear()
    _, layer = measured(x, False, monkeypatch)
    sketch.directions.cache_clear()
    assert layer.inputs.second.root.shape[1] <= 8
    assert close(layer.inputs.second.diagonal(), x.double().square().mean(0), 1e-5)
    variance = x.double().var(0, correction=0)
    assert close(layer.inputs.covariance.diagonal(), variance, 1e-4)


def test_a_root_is_one_of_the_moment(monkeypatch):
    _, layer = measured(rows(noise=0.1), False, monkeypatch)
    weight = layer.weight.double()
    for moment in (layer.inputs.second, layer.inputs.covariance):
        wanted = weight @ matrix(moment) @ weight.T
        seen = root_of(moment).seen_by(weight)
        assert close(seen @ seen.T, wanted, 1e-9)
        assert close(weight @ (moment @ weight.T), wanted, 1e-9)
    assert root_of(torch.eye(4).double()).alone is None
    assert isinstance(root_of(layer.inputs.second).float(), Root)


def test_sketches_of_shards_add_up_to_the_last_bit(monkeypatch):
    x = rows(noise=0.1)
    whole, _ = measured(x, False, monkeypatch)
    shards, _ = measured(x, False, monkeypatch, pieces=7)  # of whole batches
    assert "first|xx" not in whole.sums and "first|sketch" in whole.sums
    assert whole.sums["first|sketch"].shape == (INPUTS, DIRECTIONS)
    assert all(torch.equal(shards.sums[name], whole.sums[name]) for name in whole.sums)


@pytest.mark.parametrize("name", ["low_rank", "svd", "eora", "low_rank_quantized", "half"])
def test_losses_by_a_sketch_are_near_those_of_the_whole_moment(name, monkeypatch):
    x = rows(rank=40, noise=0.05)
    whole, sketched = (measured(x, exact, monkeypatch)[1] for exact in (True, False))
    method = methods.get(name)
    for settings in method.candidates(whole.spec)[::5]:
        served = method.compress(sketched, settings)
        wanted = predicted_loss(whole, served)
        assert predicted_loss(sketched, served) == pytest.approx(wanted, rel=0.1)


def test_unmeasured_wide_inputs_are_independent_and_take_no_square(monkeypatch):
    unmeasured = LinearStatistics.unmeasured(26_240)
    assert isinstance(unmeasured.second, Sketched)
    few = torch.randn(26_240, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    assert torch.equal(unmeasured.second @ few, few)
    assert torch.equal(unmeasured.covariance.diagonal(), torch.ones(26_240).double())


@pytest.mark.parametrize("wide", [False, True])
def test_folded_statistics_are_those_of_the_codes(wide, monkeypatch):
    """Codes of the first inputs; the others are read as they are."""
    x = rows(rank=10)
    _, layer = measured(x, not wide, monkeypatch)
    generator = torch.manual_seed(3)
    encoder = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    shift = torch.randn(4, generator=generator, dtype=torch.float64)
    codes = folding.Codes(encoder, shift, Decoder(torch.zeros(4, 30), torch.zeros(30)))
    parts = [codes, 50]
    found = folding._encoded(layer.inputs, parts)
    y = torch.cat([x[:, :30].double() @ encoder + shift, x[:, 30:].double()], 1)
    assert close(found.mean, y.mean(0), 1e-5)
    eye = torch.eye(y.shape[1], dtype=torch.float64)
    assert close(found.second @ eye, y.T @ y / ROWS, 1e-5)


def test_folded_variances_go_through_the_squares(monkeypatch):
    """Inputs that all vary by themselves: the codes' variances are sums of squares."""
    zeros = torch.zeros(6, dtype=torch.float64)
    variances = torch.arange(1.0, 7.0, dtype=torch.float64)
    inputs = LinearStatistics(zeros, sketch.Sketched(zeros, zeros[:, None][:, :0], variances))
    encoder = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    codes = folding.Codes(encoder, zeros[:2], Decoder(torch.zeros(2, 2), torch.zeros(2)))
    found = folding._encoded(inputs, [codes, 2])
    assert found.covariance.diagonal().tolist() == [1 + 2 * 9, 4 + 2 * 0.25, 3, 4, 5, 6]
