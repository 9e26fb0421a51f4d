from __future__ import annotations

import pytest
import torch
from torch import nn

from embedcomp.sensitivity.layers import find
from tests import small


def test_tables_and_linear_layers_are_found_by_name():
    found = find(small.model(), small.counts())
    assert list(found.layers) == [
        "embeddings.embedding_bags.t_a",
        "embeddings.embedding_bags.t_b",
        "embeddings.embedding_bags.t_c",
        "first.linear",
        "deep.1",
        "deep.4",
        "wide",
    ]
    assert found.refused == {}
    spec = found.layers["embeddings.embedding_bags.t_a"].spec
    assert (spec.rows, spec.dim, spec.pooling, spec.features) == (300, small.DIM, "mean", ("a",))


def test_tables_know_how_often_their_rows_are_looked_up():
    found = find(small.model(), small.counts())
    layer = found.layers["embeddings.embedding_bags.t_c"]
    assert layer.counts.tolist() == small.counts()["c"].tolist()
    assert find(small.model(), {}).layers["embeddings.embedding_bags.t_c"].counts is None


def test_the_activation_after_a_linear_layer_is_found():
    found = find(small.model(), {})
    assert found.layers["deep.1"].spec.activation == "relu"
    assert found.layers["deep.4"].spec.activation is None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.two = self.one


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)
        self.out = nn.Linear(2, 3, bias=False)
        self.out.weight = self.table.weight


class Other(nn.Linear):
    pass


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.ones(3, 2), padding_idx=1)


REFUSED = [
    (Tied(), "one", "is the same module as two"),
    (Shared(), "out", "shares its weight"),
    (Shared(), "table", "shares its weight"),
    (Padded(), "table", "gives something else than zeros for its padding_idx 1"),
    (nn.Linear(2, 2), "", "is the model itself"),
    (nn.ModuleDict({"t": nn.EmbeddingBag(4, 2, mode="max")}), "t", "takes the maximum"),
    (nn.ModuleDict({"l": nn.Linear(2, 2).half()}), "l", "holds float16"),
    (nn.ModuleDict({"l": Other(2, 2)}), "l", "is a Other, which is neither"),
    (nn.ModuleDict({"n": nn.LayerNorm(2)}), "n", "is a LayerNorm, which is neither"),
    (
        nn.ModuleDict({"l": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))}),
        "l",
        "is a ParametrizedLinear",
    ),
]


@pytest.mark.parametrize(("model", "name", "reason"), REFUSED)
def test_what_a_swap_would_break_is_refused_by_name(model, name, reason):
    found = find(model, {})
    assert name not in found.layers
    assert reason in found.refused[name]


class Around(nn.Module):
    """Owns a parameter itself, and a layer."""

    def __init__(self, inside):
        super().__init__()
        self.scale, self.inside = nn.Parameter(torch.ones(1)), inside


def test_a_module_that_owns_parameters_hides_no_layer_within():
    found = find(Around(Around(nn.Linear(2, 2))), {})
    assert list(found.layers) == ["inside.inside"]
    assert set(found.refused) == {"", "inside"}


def test_layers_of_any_width_are_found():
    model = nn.Sequential(nn.Linear(30_000, 2), nn.ReLU(), nn.Linear(2, 1))
    found = find(model, {})
    assert list(found.layers) == ["0", "2"] and not found.refused


def test_weights_that_are_not_finite_are_refused():
    model = nn.ModuleDict({"l": nn.Linear(2, 2)})
    model["l"].weight.data[0, 0] = torch.nan
    assert find(model, {}).refused == {"l": "holds values that are not finite"}


def test_a_sample_of_a_table_keeps_the_most_looked_up_rows_and_the_total():
    layer = find(small.model(), small.counts()).layers["embeddings.embedding_bags.t_a"]
    sample = layer.sampled(100)
    assert sample.spec.rows == len(sample.weight) == 100
    order = layer.counts.argsort(descending=True, stable=True)
    kept = torch.cat([order[:50], order[52::5]]).sort().values  # and every fifth of the others
    assert torch.equal(sample.weight, layer.weight[kept])
    assert float(sample.stands_for.sum()) == 300
    assert float(sample.counts.sum()) == pytest.approx(float(layer.counts.sum()), rel=0.05)
    assert layer.sampled(300) is layer
