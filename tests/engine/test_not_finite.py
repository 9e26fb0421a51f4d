"""Numbers that are not finite fare in the engine as they do in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcomp.engine.engine import (
    Engine,
    Ids,
    Inputs,
)
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.tensors import Table, Tensors
from embedcomp.errors import BadRequest
from embedcomp.graph.graph import Feature, Graph, Node
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from tests.covering import in_pairs
from tests.engine.conftest import KERNELS
from tests.engine.test_engine import TORCH

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")

SPECIAL = np.array(
    [*(np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -1e-45, 0, -0.0, 1, -1, 30, -30)],
    np.float32,
)
BINARY = {
    **{"add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div},
    **{"maximum": torch.maximum, "minimum": torch.minimum, "power": torch.pow},
}


def logits(rows: np.ndarray, *nodes: Node, precision: str = "float32", **weights: np.ndarray):
    """The last node's first column for every row [n, width] of a table; NaN where it has no score.

    Infinite ones have none either.
    """
    n, width = rows.shape
    look_up = Node(op="look_up", at=0, width=width, form="rows")
    feature = Feature(table="t", leaf=0, key="f")
    graph = Graph(features=(feature,), nodes=(look_up, *nodes), out=nodes[-1].at)
    tensors = Tensors(
        {"t.weight": rows} | weights, {}, {"t": Table(rows=n, dim=width, pooling="sum")}
    )
    engine = Engine(graph, lower(graph, tensors, precision=precision))
    return np.array([_logit(engine, id) for id in range(n)], np.float32)


def _logit(engine: Engine, id: int) -> float:
    ids, lengths = np.array([id]), np.ones(1, np.int64)
    jagged = Ids(address(ids), 1, lengths=address(lengths), keys=("f",))
    try:
        return float(engine.score(Inputs(1, {0: jagged}), logits=True)[0])
    except BadRequest as error:
        assert "row 0 has none: its numbers grow beyond float32" in str(error)
        return np.nan


def only_finite(wanted: torch.Tensor) -> np.ndarray:
    return torch.where(wanted.isfinite(), wanted, torch.nan).numpy()


@pytest.mark.parametrize("name", native.UNARIES)
def test_functions_of_one_number(kernels: None, name: str) -> None:
    node = Node(op="unary", name=name, at=1, width=1, x=((0, 1),), low=0.25, high=0.75)
    # in float64, since torch's gelu of 3e38 in float32 is infinite on some CPUs
    wanted = TORCH[name](torch.from_numpy(SPECIAL).double()).float()
    assert wanted[0].isnan()
    found = logits(SPECIAL[:, None], node)
    np.testing.assert_allclose(found, only_finite(wanted), rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("name", native.BINARIES)
def test_functions_of_two_numbers(kernels: None, name: str) -> None:
    pairs = np.stack(np.meshgrid(SPECIAL, SPECIAL), -1).reshape(-1, 2)
    node = Node(op="binary", name=name, at=2, width=1, x=((0, 1),), y=((1, 1),))
    wanted = BINARY[name](*torch.from_numpy(pairs).T)
    np.testing.assert_allclose(logits(pairs, node), only_finite(wanted), rtol=2e-6, atol=1e-37)


@in_pairs(kernels=KERNELS, relu=(False, True), outputs=(1, 70), precision=native.FORMATS)
def test_layers(kernels: None, relu: bool, outputs: int, precision: str) -> None:
    """One number that is none makes the whole layer's outputs none, with a ReLU or without."""
    rows = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    rows[1, 3], rows[2, 60], rows[3, 0] = np.nan, -np.nan, np.inf
    rows[4] = 1e-42  # whose step is too small to be divided by
    weight = np.full((outputs, 64), 0.5, np.float32)
    layer = Node(
        op="linear", at=64, width=outputs, x=((0, 64),), name="w", inputs=64, outputs=outputs
    )
    after = Node(op="unary", name="relu", at=64 + outputs, width=outputs, x=((64, outputs),))
    found = logits(rows, layer, *[after] * relu, precision=precision, w=weight)
    assert np.isnan(found[1:4]).all() and np.isfinite(found[[0, 4, 5]]).all()
    assert abs(found[4]) < 1e-37
