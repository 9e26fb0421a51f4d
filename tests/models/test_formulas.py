"""Every model's logits, against its paper's formula written out for one row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp import models
from embedcomp.log.batches import Batch, in_order
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.models._layers import initialised

ROWS, WIDTH = 12, 4
SETTINGS = {"width": WIDTH, "hidden": (8, 6)}


@pytest.fixture
def batch(synth_log: ClickLog, synth_features: Features) -> Batch:
    return next(iter(in_order(synth_log, synth_features, synth_log.pieces("test"), ROWS)))


def built(name: str, features: Features, **settings: object) -> nn.Module:
    """A model in which every part has a say."""
    torch.manual_seed(0)
    file = models.get(name)
    model = file.build(features, file.Settings(**SETTINGS, **settings)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False)


def looked_up(tables: nn.Module, sparse: KeyedJaggedTensor, row: int) -> list[Tensor]:
    """The mean of a row's ids in each table, in the tables' order; zeros where there are none."""
    found = []
    for config in tables.embedding_bag_configs():
        (feature,) = config.feature_names
        bags = sparse[feature]
        ids = bags.values()[bags.offsets()[row] : bags.offsets()[row + 1]]
        weight = tables.embedding_bags[config.name].weight
        total = sum((weight[i] for i in ids), torch.zeros(weight.shape[1]))
        found.append(total / max(len(ids), 1))
    return found


def through(layers: nn.Module, x: Tensor) -> Tensor:
    """A perceptron: every linear layer, each followed by ReLU."""
    for layer in (m for m in layers.modules() if isinstance(m, nn.Linear)):
        x = (layer.weight @ x + layer.bias).relu()
    return x


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def first_order(tables: nn.Module, dense_layer: nn.Linear, b: Batch, row: int) -> Tensor:
    return sum(looked_up(tables, b.sparse, row)) + linear(dense_layer, b.dense[row])


def fields_of(model: nn.Module, b: Batch, row: int) -> list[Tensor]:
    """The tables' vectors, and each dense feature times a vector of its own."""
    scaled = [x * vector for x, vector in zip(b.dense[row], model.fields.vectors, strict=True)]
    return [*looked_up(model.embeddings, b.sparse, row), *scaled]


def dcnv2(model: nn.Module, b: Batch, row: int) -> Tensor:
    x0 = x = torch.cat([*looked_up(model.embeddings, b.sparse, row), b.dense[row]])
    for layer in model.cross:
        x = x0 * linear(layer, x) + x
    deep = through(model.deep, linear(model.deep_in.linear, x0).relu())
    return linear(model.out, torch.cat([x, deep]))


def deepfm(model: nn.Module, b: Batch, row: int) -> Tensor:
    vectors = looked_up(model.embeddings, b.sparse, row)
    x = torch.cat([*vectors, b.dense[row]])
    deep = linear(model.out, through(model.deep, linear(model.deep_in.linear, x).relu()))
    pairs = sum(v @ w for v, w in combinations(vectors, 2))
    return deep + pairs + first_order(model.first_order, model.dense_first_order, b, row)


def dlrm(model: nn.Module, b: Batch, row: int) -> Tensor:
    below = through(model.bottom, b.dense[row])
    vectors = [below, *looked_up(model.embeddings, b.sparse, row)]
    dots = torch.stack([v @ w for v, w in combinations(vectors, 2)])
    return linear(model.out, through(model.top, torch.cat([below, dots])))


def nfm(model: nn.Module, b: Batch, row: int) -> Tensor:
    pooled = sum(v * w for v, w in combinations(fields_of(model, b, row), 2))
    deep = linear(model.out, through(model.deep, pooled))
    return deep + first_order(model.first_order.tables, model.first_order.dense, b, row)


def attended(layer: nn.Module, fields: list[Tensor]) -> list[Tensor]:
    """Each field as heads of the others' values, weighed by likeness, and itself (AutoInt, 3.3)."""
    parts = zip(
        *(m.weight.chunk(layer.heads) for m in (layer.query, layer.key, layer.value)), strict=True
    )
    heads = []
    for query, key, value in parts:
        scale = len(query) ** 0.5
        likeness = [[(query @ v) @ (key @ w) / scale for w in fields] for v in fields]
        shares = [torch.stack(of_one).softmax(0) for of_one in likeness]
        heads.append(
            [sum(s * (value @ w) for s, w in zip(of, fields, strict=True)) for of in shares]
        )
    residuals = [layer.residual.weight @ v for v in fields]
    return [(torch.cat(h) + r).relu() for *h, r in zip(*heads, residuals, strict=True)]


def autoint(model: nn.Module, b: Batch, row: int) -> Tensor:
    x = torch.cat([*looked_up(model.embeddings, b.sparse, row), b.dense[row]])
    deep = linear(model.out, through(model.deep, linear(model.deep_in.linear, x).relu()))
    fields = fields_of(model, b, row)
    for layer in model.attention:
        fields = attended(layer, fields)
    return deep + linear(model.attention_out, torch.cat(fields))


def fibinet(model: nn.Module, b: Batch, row: int) -> Tensor:
    fields = fields_of(model, b, row)
    squeeze, _, excite, _ = model.senet.weights
    shares = (excite.weight @ (squeeze.weight @ torch.stack(fields).mean(1)).relu()).relu()
    products = []
    for of in (fields, [share * v for share, v in zip(shares, fields, strict=True)]):
        for i, j in combinations(range(len(of)), 2):
            matrix = model.bilinear.layers[i].weight.split(WIDTH)[j - i - 1]
            products.append((matrix @ of[i]) * of[j])
    deep = linear(model.out, through(model.deep, torch.cat(products)))
    return deep + first_order(model.first_order.tables, model.first_order.dense, b, row)


FORMULAS: dict[str, Callable[[nn.Module, Batch, int], Tensor]] = {
    "autoint": autoint,
    "dcnv2": dcnv2,
    "deepfm": deepfm,
    "dlrm": dlrm,
    "fibinet": fibinet,
    "nfm": nfm,
}


@pytest.mark.parametrize("name", models.names())
def test_logits_are_those_of_the_formula(name: str, synth_features: Features, batch: Batch) -> None:
    more = {"attention_width": 6, "heads": 2} if name == "autoint" else {}
    model = built(name, synth_features, **more)
    found = model(batch.dense, batch.sparse)
    wanted = torch.cat([FORMULAS[name](model, batch, row) for row in range(ROWS)])
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_new_layers_are_of_glorots_spread_and_without_a_bias() -> None:
    for inputs, outputs in pairwise((400, 300, 100)):
        layer = initialised(nn.Sequential(nn.Linear(inputs, outputs)))[0].requires_grad_(False)
        assert not layer.bias.any()
        assert float(layer.weight.var()) == pytest.approx(2 / (inputs + outputs), rel=0.05)
