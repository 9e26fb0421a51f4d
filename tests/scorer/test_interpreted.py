"""What torch makes of a graph where the engine was not built, function by function."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcomp.engine.engine import Engine, Inputs
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.standalone import Standalone
from embedcomp.engine.tensors import Tensors
from embedcomp.graph.graph import Graph, Leaf, Node
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.scorer.interpreted import Interpreted

WIDTH = 6
pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not built")


def both(*made: Node) -> tuple[np.ndarray, np.ndarray]:
    """Logits by the engine and by torch: sums of the last node's output, for inputs in 0..1."""
    last = made[-1]
    end = last.at + last.width
    total = Node(op="sum", at=end, width=1, times=last.width, x=((last.at, last.width),))
    graph = Graph(features=(), nodes=(Node(op="input", at=0, width=WIDTH), *made, total), out=end)
    x = np.random.default_rng(0).uniform(0.05, 0.95, (5, WIDTH)).astype(np.float32)
    engine = Engine(graph, lower(graph, Tensors({}, {}, {})))
    found = engine.score(Inputs(len(x), {}, [(address(x), WIDTH)], held=x), logits=True)
    alone = Standalone(
        leaves=(Leaf(name="", kind="dense", width=WIDTH),),
        look_ups=(),
        weights=(),
        graph=graph,
        reason="",
        stored={},
        tables={},
        layers={},
    )
    return found, Interpreted(alone, {}).logits([torch.from_numpy(x)]).numpy()


@pytest.mark.parametrize("name", native.UNARIES)
def test_functions_of_one_number(name: str) -> None:
    moved = Node(op="unary", name="affine", at=6, width=6, x=((0, 6),), low=0.9, high=-0.03)
    node = Node(op="unary", name=name, at=12, width=6, x=((6, 6),), low=0.3, high=0.6)
    np.testing.assert_allclose(*both(moved, node), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", native.BINARIES)
def test_functions_of_two_numbers(name: str) -> None:
    node = Node(op="binary", name=name, at=6, width=3, x=((0, 3),), y=((2, 2), (5, 1)))
    np.testing.assert_allclose(*both(node), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("others", [(), ((0, 2), (4, 2))])
def test_products_of_vectors(others: tuple[tuple[int, int], ...]) -> None:
    node = Node(op="dots", at=6, width=6 if others else 9, x=((0, 6),), y=others,
                times=3, inputs=2, outputs=2 if others else 3)  # fmt: skip
    np.testing.assert_allclose(*both(node), rtol=2e-5, atol=1e-5)
