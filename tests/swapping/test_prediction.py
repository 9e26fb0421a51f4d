"""Predicted losses against measured ones."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from embedcomp import methods
from embedcomp.errors import BadModel, BadSettings
from embedcomp.planning.choices import Choice, choices
from embedcomp.planning.diverse import Option, diverse
from embedcomp.swapping.prediction import (
    Checked,
    check,
    spearman,
    summary,
)
from embedcomp.swapping.settings import CheckSettings
from tests import small

TABLE, LINEAR = "embeddings.embedding_bags.t_a", "deep.1"


def scores(model, batches):
    with torch.no_grad():
        return torch.cat([model(b.dense, b.sparse) for b in batches]).double()


def calibrated(model, batches):
    """The batches with the model's own probabilities as labels."""
    return [replace(b, labels=torch.sigmoid(model(b.dense, b.sparse)).detach()) for b in batches]


def made(layer, method):
    """Every option of one method for a layer."""
    return [Option(layer.spec.name, choice) for choice in choices(layer, [method])]


def checked(predicted, true, error=0.0, layer="l"):
    return Checked(
        layer=layer,
        kind="table",
        method="svd",
        settings={"rank": 1, "storage": "float16"},
        bytes=1,
        predicted=predicted,
        true=true,
        error=error,
        expected=true,
    )


@pytest.mark.parametrize("name", [TABLE, LINEAR])
def test_the_ranks_of_one_layer_are_ranked_as_they_truly_are(name):
    model, found, measured = small.measured()
    layers = measured.measured(found).layers
    ranks = [1, 3, 5, 7]
    options = [
        o
        for o in made(layers[name], "low_rank")
        if o.choice.settings.rank in ranks and o.choice.settings.storage == "float16"
    ]
    told = []
    batches = calibrated(model, small.batches())
    result = check(model, layers, options, batches, told.append)
    assert len(result) == 4
    assert [(state.done, state.total) for state in told] == [(n, 4) for n in range(5)]
    assert [c.settings["rank"] for c in sorted(result, key=lambda c: -c.true)] == ranks
    assert spearman(result) == pytest.approx(1.0)
    assert all(0.4 < c.true / c.predicted < 2.5 for c in result)


@pytest.mark.slow
@pytest.mark.parametrize("name", [TABLE, LINEAR])
def test_an_increase_is_that_of_the_mean_log_loss_and_the_model_is_left_as_it_was(name):
    model, found, measured = small.measured()
    layers = measured.measured(found).layers
    batches = small.batches()
    before, own = scores(model, batches), model.get_submodule(name)
    option = made(layers[name], "row_int4")[0]
    [result] = check(model, layers, [option], batches)
    assert model.get_submodule(name) is own and torch.equal(scores(model, batches), before)

    served = methods.get("row_int4").compress(layers[name], option.choice.settings)
    other = copy.deepcopy(model)
    values = served.to_float()
    with torch.no_grad():
        if name == TABLE:
            other.get_submodule(name).weight.copy_(values)
        else:
            other.get_submodule(name).weight.copy_(values[0])
            other.get_submodule(name).bias.copy_(values[1])
    after, labels = scores(other, batches), torch.cat([b.labels for b in batches])
    p, q = torch.sigmoid(before).numpy(), torch.sigmoid(after).numpy()
    assert result.true == pytest.approx(log_loss(labels, q) - log_loss(labels, p), abs=1e-7)
    kept = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert result.expected == pytest.approx(kept.mean(), rel=1e-3)
    each = [
        log_loss([y], [b], labels=[0, 1]) - log_loss([y], [a], labels=[0, 1])
        for y, a, b in zip(labels, p, q, strict=True)
    ]
    assert result.error == pytest.approx(np.std(each, ddof=1) / len(each) ** 0.5, rel=1e-3)
    assert (result.layer, result.predicted) == (name, option.choice.loss)


def test_what_is_taken_by_default_is_twice_its_standard_error():
    rows = 40_000
    generator = torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    x = torch.randn(rows, 1, generator=generator)
    p = torch.sigmoid(model(x).detach())
    weight = float((p * (1 - p) * x.square()).mean())
    moved = (2 * CheckSettings(rows=rows).smallest(rows) / weight) ** 0.5
    labels = torch.bernoulli(p, generator=generator)
    z, shift = model(x).detach().double(), moved * x
    increase = torch.nn.functional.softplus(z + shift) - torch.nn.functional.softplus(z)
    each = increase - labels * shift
    assert float(each.std() / rows**0.5) == pytest.approx(
        CheckSettings(rows=rows).smallest(rows) / 2, rel=0.03
    )
    assert CheckSettings(least=0.5).smallest(rows) == 0.5


def test_ranks_are_correlated_by_layer_and_across_layers():
    falling = [checked(1e-3 * i, 1e-3 * (4 - i), 1e-4, "down") for i in (1, 2, 3)]
    rising = [checked(0.1 * i, 0.2 * i, 0.15, "up") for i in (1, 2, 3)]
    told = summary([*falling, *rising], 100, "valid")
    assert told["layers"]["down"]["spearman"] == pytest.approx(-1)
    assert told["layers"]["up"]["spearman"] == pytest.approx(1)
    assert told["layers"]["up"]["ratio"] == pytest.approx(2)
    assert told["spearman"] == pytest.approx(1 - 6 * 8 / (6 * 35))
    assert told["clear"] == 3 + 2  # 0.2 is less than two times 0.15
    assert [o["places_too_high"] for o in told["options"]] == [-2, 0, 2, 0, 0, 0]


def test_a_correlation_of_two_options_or_of_equal_ones_is_none():
    assert spearman([checked(1, 1), checked(2, 2)]) is None
    assert spearman([checked(1, 1), checked(1, 2), checked(1, 3)]) is None


def choice(loss, method="m"):
    return Choice(method, None, 1, loss)


def test_options_spread_over_layers_magnitudes_and_methods():
    found = {
        "wide": [choice(10.0**-k * (1 + i / 1000)) for k in range(6) for i in range(50)],
        "narrow": [choice(0.1 * (1 + i / 1000), m) for m in "mn" for i in range(50)],
    }
    taken = diverse(found, 8, 0.0, 3)
    wide = [round(np.log10(o.choice.loss)) for o in taken if o.layer == "wide"]
    narrow = [o.choice.method for o in taken if o.layer == "narrow"]
    assert wide == [-5, -4, -3, -2, -1, 0] and sorted(narrow) == ["m", "n"]
    assert diverse(found, 8, 0.0, 3) == taken != diverse(found, 8, 0.0, 4)


def test_small_losses_are_taken_only_where_there_are_too_few_others_and_none_that_is_zero():
    found = {"l": [choice(x) for x in (0.0, 1e-9, 1e-8, 0.1, 0.2, 0.3)]}
    losses = lambda count: [o.choice.loss for o in diverse(found, count, 0.05, 0)]  # noqa: E731
    assert losses(3) == [0.1, 0.2, 0.3]
    assert losses(4) == [1e-8, 0.1, 0.2, 0.3]
    assert losses(60) == [1e-9, 1e-8, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"options": 2}, "options is 2, but at least 3 are ranked"),
        ({"rows": 1}, "rows is 1, but a standard error takes at least 2"),
        ({"least": -1.0}, "least is -1, but a predicted increase is 0 or more"),
    ],
)
def test_settings_that_measure_nothing_are_refused(wrong, message):
    with pytest.raises(BadSettings, match=message):
        CheckSettings(**wrong)


def test_no_rows_are_refused():
    model, found, measured = small.measured()
    layers = measured.measured(found).layers
    with pytest.raises(BadModel, match="cannot be measured on 0 rows"):
        check(model, layers, made(layers[TABLE], "half"), [])
