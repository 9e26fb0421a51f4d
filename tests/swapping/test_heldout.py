"""Compressed models on held-out rows: what they lose, and the mean score that is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from embedcomp.errors import BadLog, BadModel
from embedcomp.modules.linear import CompressedLinear
from embedcomp.planning.plan import Outcome
from embedcomp.swapping.heldout import HeldOut
from embedcomp.swapping.lastbias import add_to_bias, last_bias


class Two(nn.Module):
    """A deep part, a wide part of half the weight, and one number that scales the rest."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.deep = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.ReLU())
        self.last = last
        self.wide = nn.Linear(6, 1)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return (self.last(self.deep(x)) + 0.5 * self.wide(x)).squeeze(1) + 0 * self.scale


def score(model, x):
    return model(x)


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(5, 1, bias=bias)


def stored(storage, bias="float16"):
    made = CompressedLinear(5, 1, bias, storage)
    torch.manual_seed(1)
    made.stored.fill(torch.randn(1, 5))
    if bias is not None:
        made.set_bias(torch.tensor([0.3]))
    return made


def rows(seed=0, count=4000):
    torch.manual_seed(seed)
    x = torch.randn(count, 6)
    labels = (torch.rand(count) < torch.sigmoid(x.sum(1) - 1.5)).float()
    return [(x[part], labels[part]) for part in torch.arange(count).split(700)]


@pytest.mark.parametrize("last", [linear(), stored("float16"), stored("row_int4")])
def test_the_mean_score_stays_whatever_was_done_to_the_model(last):
    original = Two(linear()).train()
    held = HeldOut.of(original, rows(), score, "valid")
    changed = Two(last).train()
    with torch.no_grad():
        changed.deep[0].weight.mul_(1.7)
    outcome, quality = held.keep_mean_(changed)
    assert outcome.bias == "last.bias" and abs(outcome.shift) > 0.02
    with torch.no_grad():
        now = torch.sigmoid(torch.cat([changed.eval()(x) for x, _ in rows()]).double())
        was = torch.sigmoid(torch.cat([original.eval()(x) for x, _ in rows()]).double())
    assert now.mean() == pytest.approx(float(was.mean()), rel=3e-4)  # a bias of 16 bits
    labels = torch.cat([y for _, y in rows()])
    assert quality.calibration == pytest.approx(float(now.sum() / labels.sum()), rel=3e-4)


def test_models_are_left_in_their_mode_and_scored_without_dropout():
    original = Two(linear()).train()
    held = HeldOut.of(original, rows(), score, "valid")
    assert original.training and original.deep.training
    assert held.compared(original)[0].auc_loss == 0
    np.testing.assert_array_equal(
        held.original, HeldOut.of(original.eval(), rows(), score, "valid").original
    )


def test_without_a_bias_in_every_logit_nothing_is_added():
    model = Two(linear(bias=False))
    held = HeldOut.of(model, rows(), score, "valid")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome, _ = held.keep_mean_(model)
    assert outcome.bias == "" and outcome.shift == 0
    assert "mean score not kept" in str(outcome)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_bias_of_its_own_counts_too():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x @ self.weight + self.bias

    model = Plain()
    assert last_bias(model, score, rows()[0][0]) == "bias"
    add_to_bias(model, "bias", 0.25)
    assert model.bias.item() == 0.25
    with pytest.raises(BadModel, match="which this model does not have"):
        add_to_bias(model, "out.bias", 1.0)


def test_the_error_of_the_mean_score_is_that_on_other_rows():
    original, changed = Two(linear()), Two(stored("row_int4"))
    means, told = [], []
    for seed in range(30):
        held = HeldOut.of(original, rows(seed, 500), score, "valid")
        fresh = Two(stored("row_int4"))
        outcome, _ = held.keep_mean_(fresh)
        told.append(outcome.score_error)
        others = HeldOut.of(original, rows(seed + 100, 500), score, "valid")
        kept = expit(others.original + 0).mean()
        with torch.no_grad():
            now = torch.sigmoid(torch.cat([fresh.eval()(x) for x, _ in rows(seed + 100, 500)]))
        means.append(float(now.double().mean()) / kept - 1)
    # both the rows that it was fitted on and the others vary
    assert np.std(means) == pytest.approx(np.sqrt(2) * np.mean(told), rel=0.35)
    assert isinstance(changed, nn.Module)


def test_scores_that_are_no_numbers_are_refused():
    model = Two(linear())
    with torch.no_grad():
        model.last.bias.fill_(float("nan"))
    with pytest.raises(BadModel, match=r"4,000 of 4,000 rows are no finite numbers"):
        HeldOut.of(model, rows(), score, "valid")


def test_rows_of_one_kind_have_no_auc_to_measure():
    x, labels = rows()[0]
    held = HeldOut.of(Two(linear()), [(x, labels * 0)], score, "valid")
    with pytest.raises(BadLog, match="0 clicked and 700 other valid rows"):
        held.refuse_one_kind()


def test_an_outcome_says_both_figures():
    outcome = Outcome(rows=1000, where="valid", auc_loss=-1e-4, auc_error=2e-5)
    assert str(outcome) == "measured AUC +1.00e-04 (standard error 2.0e-05) on 1,000 valid rows"
    kept = replace(outcome, bias="out.bias", shift=-0.0123, score_error=0.004)
    assert str(kept).endswith(
        "mean score kept by out.bias -0.0123 (on other rows to 0.80%, two standard errors)"
    )


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "there was no given row to score"),
        ([{"a": 1, "b": 2, "c": 3}], "batch 0 is no pair of inputs and labels"),
        ([rows()[0], torch.randn(2, 6)], "batch 1 is no pair of inputs and labels"),
        ([(torch.randn(3, 6), torch.zeros(4))], "have 4 labels, but the model gives 3 scores"),
    ],
)
def test_batches_that_are_none_are_refused_in_a_sentence(batches, sentence):
    with pytest.raises(BadModel, match=sentence):
        HeldOut.of(Two(linear()), batches, score, "given")


@pytest.mark.parametrize(("asked", "batches"), [(1, 1), (700, 1), (701, 2), (9999, 6)])
def test_the_first_batches_are_as_many_rows_as_are_asked_for(asked: int, batches: int) -> None:
    model = Two(linear())
    held = HeldOut.of(model, rows(), score, "validation")
    few = held.first(asked)
    end = min(700 * batches, 4000)
    assert len(few.inputs) == batches and len(few) == len(few.original) == end
    assert (few.labels == held.labels[:end]).all()
    assert few.quality_of(model).auc == few.quality.auc
