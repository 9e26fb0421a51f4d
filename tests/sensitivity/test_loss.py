"""Predicted losses against what is really served, input by input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from embedcomp.methods import dense_int8, low_rank
from embedcomp.methods.baselines import svd
from embedcomp.methods.parts import build
from embedcomp.sensitivity.algebra import root
from embedcomp.sensitivity.loss import predicted_loss
from tests.methods.test_low_rank import OUTPUTS, linear, psd


@torch.no_grad()
def true_loss(layer, served, inputs):
    """Half of the mean of e^T G e."""
    off = (served(inputs) - F.linear(inputs, layer.weight, layer.bias)).double()
    return float((off @ layer.gradient * off).sum(1).mean()) / 2


@pytest.mark.parametrize("rank", [1, 4])
def test_an_error_of_the_mean_output_counts(rank):
    """svd centres nothing, and the inputs have a mean."""
    layer, inputs = linear(psd(OUTPUTS, 5))
    served = svd.compress(layer, svd.Settings(rank=rank))
    assert predicted_loss(layer, served) == pytest.approx(
        true_loss(layer, served, inputs), rel=1e-3
    )


@pytest.mark.parametrize("metric", [None, psd(OUTPUTS, 5)])
def test_two_factors_lose_what_their_product_does(metric):
    """They are judged without the product, by the same formula."""
    layer, _ = linear(metric)
    bias = torch.randn(OUTPUTS, generator=torch.manual_seed(3))
    layer = replace(layer, bias=bias)
    served = svd.compress(layer, svd.Settings(rank=2, storage="column_mixed3"))
    product = build.plain(layer.spec, "float32")
    served.set_bias(bias - 0.1)
    weight, rounded = served.to_float()
    product.stored.fill(weight)
    product.set_bias(rounded)
    assert predicted_loss(layer, served) == pytest.approx(predicted_loss(layer, product), rel=1e-5)


def test_rounding_inputs_to_bytes_costs_what_their_errors_cost_the_loss():
    """A uniform error of one step of 255 in every input, weighed by G at the output."""
    layer, _ = linear(psd(OUTPUTS, 5))
    layer = replace(layer, statistics=replace(layer.statistics, spread=1e4))  # drowns the weight's
    served = dense_int8.compress(layer, dense_int8.Settings())
    weight = served.to_float()[0].double()
    step = layer.inputs.spread**0.5 / 255
    noise = torch.rand(200_000, weight.shape[1], generator=torch.manual_seed(2)) - 0.5
    off = step * noise.double() @ weight.T
    wanted = float((off @ layer.gradient * off).sum(1).mean()) / 2
    assert predicted_loss(layer, served) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_an_activation_between_the_factors_is_predicted_from_what_is_served(activation, rank):
    """On other normal inputs than those on which it is predicted, and many of them."""
    layer, _ = linear(psd(OUTPUTS, 5), activation)
    half = root(layer.inputs.covariance).T
    numbers = torch.randn(50_000, len(half), generator=torch.manual_seed(9)).double()
    inputs = (layer.inputs.mean + numbers @ half).float()
    served = low_rank.compress(layer, low_rank.Settings(rank=rank, activation=True))
    found = predicted_loss(layer, served)
    assert found == pytest.approx(true_loss(layer, served, inputs), rel=0.25)
    plain = low_rank.compress(layer, low_rank.Settings(rank=rank))
    assert found > predicted_loss(layer, plain)


def test_an_activation_of_other_inputs_is_predicted_within_a_factor():
    """Those of a hidden layer are rectified, and far from normal."""
    layer, inputs = linear(psd(OUTPUTS, 5), "relu")
    inputs = torch.relu(inputs - 1)
    x = inputs.double()
    seen = replace(layer.statistics, mean=x.mean(0), second=x.T @ x / len(x))
    layer = replace(layer, statistics=seen, _shared={})
    served = low_rank.compress(layer, low_rank.Settings(rank=3, activation=True))
    ratio = predicted_loss(layer, served) / true_loss(layer, served, inputs)
    assert 0.5 < ratio < 2
