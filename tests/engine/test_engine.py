"""The compiled engine against numpy: every operation, every storage, the kernels of every CPU."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import numpy as np
import pytest
import torch

from embedcomp.engine.arrays import as_array
from embedcomp.engine.engine import (
    Engine,
    Ids,
    Inputs,
)
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.tensors import StoredMatrix, Table, Tensors
from embedcomp.graph.graph import Feature, Graph, Node
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.storage.kinds import named
from embedcomp.storage.kinds.chunked import Bytes, Halves
from embedcomp.storage.kinds.csr import Csr
from embedcomp.storage.kinds.residual import Residual
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.kmeans import nearest
from embedcomp.storage.names import STORAGES
from embedcomp.storage.pursuit import likest
from embedcomp.storage.rows import StoredRows
from tests.covering import in_pairs
from tests.engine.conftest import KERNELS

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")


def run(
    graph: Graph, tensors: dict[str, np.ndarray], *dense: np.ndarray, precision: str = "float32"
):
    made = Tensors(tensors, {}, {})
    engine = Engine(graph, lower(graph, made, precision=precision))
    inputs = Inputs(len(dense[0]), {}, [(address(x), x.shape[1]) for x in dense], dense)
    return engine.score(inputs, logits=True)


def summed(*nodes: Node) -> Graph:
    """Inputs, then these nodes, then the sum of the last one's columns."""
    last = nodes[-1]
    total = Node(
        op="sum", at=last.at + last.width, width=1, times=last.width, x=((last.at, last.width),)
    )
    return Graph(features=(), nodes=(*nodes, total), out=total.at)


def dense(width: int, which: int = 0, at: int = 0) -> Node:
    return Node(op="input", at=at, width=width, which=which)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SHAPES = (
    *((1, 1, 1), (1, 33, 64), (2, 7, 65), (5, 64, 16), (7, 100, 130), (49, 17, 31)),
    (100, 3, 257),
)  # rows, inputs, outputs


@in_pairs(kernels=KERNELS, shape=SHAPES, precision=native.FORMATS)
def test_linear(kernels: None, shape: tuple[int, int, int], precision: str) -> None:
    rows, inputs, outputs = shape
    x, w, b = numbers(rows, inputs), numbers(outputs, inputs, seed=1), numbers(outputs, seed=2)
    layer = Node(
        op="linear", at=inputs, width=outputs, x=((0, inputs),), name="w", bias="b",
        inputs=inputs, outputs=outputs,
    )  # fmt: skip
    relu = Node(op="unary", name="relu", at=inputs + outputs, width=outputs, x=((inputs, outputs),))
    found = run(summed(dense(inputs), layer, relu), {"w": w, "b": b}, x, precision=precision)
    if precision != "float32":  # bfloat16 holds eight bits; sums are in float32
        x, w = (torch.from_numpy(a).bfloat16().float().numpy() for a in (x, w))
    wanted = np.maximum(x.astype(np.float64) @ w.T + b, 0).sum(1)
    off = (
        0.05 * inputs**0.5 * outputs**0.5
        if precision == "int8" and min(inputs, outputs) >= 64
        else 1e-3
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=off)


def test_a_layer_that_others_read_too_is_not_rectified() -> None:
    x, w = numbers(7, 5), numbers(4, 5, seed=1)
    layer = Node(op="linear", at=5, width=4, x=((0, 5),), name="w", inputs=5, outputs=4)
    relu = Node(op="unary", name="relu", at=9, width=4, x=((5, 4),))
    both = Node(op="binary", name="add", at=13, width=4, x=((9, 4),), y=((5, 4),))
    found = run(summed(dense(5), layer, relu, both), {"w": w}, x)
    made = x @ w.T
    np.testing.assert_allclose(found, (np.maximum(made, 0) + made).sum(1), rtol=1e-4, atol=1e-5)


def test_an_output_without_weights_is_its_bias(kernels: None) -> None:
    """In bytes too, where a step of its weights would be 0."""
    x, w = numbers(7, 64), np.zeros((64, 64), np.float32)
    bias = np.arange(64, dtype=np.float32)
    layer = Node(
        op="linear", at=64, width=64, x=((0, 64),), name="w", bias="b", inputs=64, outputs=64
    )
    with np.errstate(all="raise"):
        found = run(summed(dense(64), layer), {"w": w, "b": bias}, x, precision="int8")
    assert (found == bias.sum()).all()


BARE = ((1, 100, 64), (16, 32, 64), (33, 70, 128), (17, 130, 200))  # rows, inputs, outputs


@in_pairs(kernels=KERNELS, shape=BARE, bias=(False, True), precision=("bfloat16", "int8"))
def test_a_product_that_nothing_follows(
    kernels: None, shape: tuple[int, int, int], bias: bool, precision: str
) -> None:
    rows, inputs, outputs = shape
    x, w, b = numbers(rows, inputs), numbers(outputs, inputs, seed=1), numbers(outputs, seed=2)
    layer = Node(
        op="linear", at=inputs, width=outputs, x=((0, inputs),), name="w",
        bias="b" if bias else None, inputs=inputs, outputs=outputs,
    )  # fmt: skip
    found = run(summed(dense(inputs), layer), {"w": w, "b": b}, x, precision=precision)
    x, w = (torch.from_numpy(a).bfloat16().float().numpy() for a in (x, w))
    wanted = (x.astype(np.float64) @ w.T + b * bias).sum(1)
    off = 0.05 * inputs**0.5 * outputs**0.5 if precision == "int8" else 2e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=off)


@in_pairs(kernels=KERNELS, widths=((64, 70, 33), (70, 64, 130, 16)), rows=(1, 20))
def test_layers_of_several_widths_follow_each_other(
    kernels: None, widths: tuple[int, ...], rows: int
) -> None:
    at, layers, tensors, made = widths[0], [], {}, numbers(rows, widths[0])
    x, before = made, (0, widths[0])
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        w = tensors[f"w{number}"] = numbers(outputs, inputs, seed=number + 1)
        layers.append(
            Node(
                op="linear", at=at, width=outputs, x=(before,), name=f"w{number}",
                inputs=inputs, outputs=outputs,
            )
        )  # fmt: skip
        before, at = (at, outputs), at + outputs
        made, w = (torch.from_numpy(a).bfloat16().float().numpy() for a in (made, w))
        made = made @ w.T
    found = run(summed(dense(widths[0]), *layers), tensors, x, precision="bfloat16")
    np.testing.assert_allclose(found, made.sum(1), rtol=0.01, atol=0.01 * np.abs(made).sum(1).max())


@in_pairs(kernels=KERNELS, precision=native.FORMATS, inputs=(16, 70, 130))
def test_a_row_has_the_same_score_whatever_is_beside_it(
    kernels: None, precision: str, inputs: int
) -> None:
    x, w, b = numbers(49, inputs), numbers(200, inputs, seed=1), numbers(200, seed=2)
    layer = Node(
        op="linear", at=inputs, width=200, x=((0, inputs),), name="w", bias="b",
        inputs=inputs, outputs=200,
    )  # fmt: skip
    relu = Node(op="unary", name="relu", at=inputs + 200, width=200, x=((inputs, 200),))
    graph, tensors = summed(dense(inputs), layer, relu), {"w": w, "b": b}
    together = run(graph, tensors, x, precision=precision)
    for rows in (1, 2, 5, 17):
        apart = [
            run(graph, tensors, x[first : first + rows], precision=precision)
            for first in range(0, len(x), rows)
        ]
        np.testing.assert_array_equal(np.concatenate(apart), together)


VECTORS = ((3, 3, 8), (7, 5, 16), (27, 27, 64), (20, 33, 5))  # of either side, and their width


@in_pairs(kernels=KERNELS, vectors=VECTORS, precision=("float32", "bfloat16"))
def test_dots(kernels: None, vectors: tuple[int, int, int], precision: str) -> None:
    n, m, width = vectors
    x, y = numbers(9, n * width), numbers(9, m * width, seed=1)
    at = (n + m) * width
    dots = Node(
        op="dots", at=at, width=n * m, x=((0, n * width),), y=((n * width, m * width),),
        times=n, inputs=width, outputs=m,
    )  # fmt: skip
    picked = tuple((at + i * m + 1, min(m - 1, 2)) for i in range(n))  # some of each row
    width_of = sum(run[1] for run in picked)
    total = Node(op="sum", at=at + n * m, width=1, times=width_of, x=picked)
    second = dense(m * width, 1, n * width)
    graph = Graph(features=(), nodes=(dense(n * width), second, dots, total), out=total.at)
    found = run(graph, {}, x, y, precision=precision)
    if precision == "bfloat16":
        x, y = (torch.from_numpy(a).bfloat16().float().numpy() for a in (x, y))
    products = np.einsum("rnd,rmd->rnm", x.reshape(9, n, width), y.reshape(9, m, width))
    wanted = products[:, :, 1 : 1 + min(m - 1, 2)].sum((1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


TORCH = {
    "copy": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "negative": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "clamp": lambda x: torch.clamp(x, 0.25, 0.75),
    "logit": torch.logit,
    "softplus": torch.nn.functional.softplus,
    "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.25),
    "elu": lambda x: torch.nn.functional.elu(x, 0.25),
    "affine": lambda x: 0.25 * x + 0.75,
}
POSITIVE = {"log", "sqrt", "rsqrt", "logit"}


@pytest.mark.parametrize("name", native.UNARIES)
def test_unary(name: str) -> None:
    x = np.random.default_rng(0).uniform(0.01 if name in POSITIVE else -1, 0.99, (11, 5))
    x = x.astype(np.float32)
    node = Node(op="unary", name=name, at=5, width=5, x=((0, 5),), low=0.25, high=0.75)
    wanted = TORCH[name](torch.from_numpy(x)).sum(1)
    np.testing.assert_allclose(run(summed(dense(5), node), {}, x), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    zip(
        native.BINARIES,
        (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum, np.power),
        strict=True,
    ),
)
def test_binary_with_a_weight_that_all_rows_share(name: str, function: np.ufunc) -> None:
    x, w = np.abs(numbers(7, 6)), np.abs(numbers(6, seed=1)) + 0.5
    weight = Node(op="weight", at=6, width=6, name="w")
    node = Node(op="binary", name=name, at=12, width=6, x=((0, 6),), y=((9, 3), (6, 3)))
    found = run(summed(dense(6), weight, node), {"w": w}, x)
    wanted = function(x, np.concatenate([w[3:], w[:3]])).sum(1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_sums_over_vectors_and_several_linear_vectors_a_row() -> None:
    x, w = numbers(5, 12), numbers(2, 3, seed=1)
    layer = Node(
        op="linear", at=12, width=8, x=((6, 6), (0, 6)), name="w", times=4, inputs=3, outputs=2
    )
    pairs = Node(op="sum", at=20, width=2, times=4, x=((12, 8),))
    found = run(summed(dense(12), layer, pairs), {"w": w}, x)
    turned = np.concatenate([x[:, 6:], x[:, :6]], 1).reshape(5, 4, 3)
    np.testing.assert_allclose(found, (turned @ w.T).sum((1, 2)), rtol=1e-5)


CODES = (
    *("product1x8", "product3x4", "product4x8", "product99x4", "product99x8", "clustered2"),
    *("clustered3", "clustered4", "clustered8", "sparse1x16", "sparse3x200"),
)


EVERY = (
    *(*STORAGES, *CODES, "tiered", "trellis", "residual", "csr", "chunked_float16", "chunked_int8"),
)


@in_pairs(kernels=KERNELS, storage=EVERY, width=(1, 2, 7, 16, 40, 150))
def test_rows_of_every_storage(kernels: None, storage: str, width: int) -> None:
    torch.manual_seed(0)
    by = 3 if storage == "trellis" else 1  # so that rows begin anywhere in a byte
    tiers = ((2, by * width), (3, -(-by * width // 2)), (20, -(-by * width // 4)), (23, 0))
    forms = {
        "tiered": Tiered,
        "trellis": Trellis,
        "residual": lambda ends, _: Residual(ends, (3, 2, 1, 0), (4, 12, 5)),
        "csr": lambda *_: Csr(9 * width),
    }
    forms |= {kind.NAME: lambda *_, kind=kind: kind(23, 9 * width // 8) for kind in (Halves, Bytes)}
    made = forms[storage](*zip(*tiers, strict=True)) if storage in forms else named(storage)
    rows = StoredRows(23, width, made)
    rows.fill(torch.randn(23, width))
    # sums of atoms are rounded in another order
    close = 1e-6 if storage.startswith("sparse") else 0.0
    held = {f"t.stored.{n}": as_array(t) for n, t in rows.state_dict().items()}
    stored = {"t.stored": StoredMatrix(kind=made, rows=23, width=width)}
    table = Table(rows=23, dim=width, pooling="sum", stored=True)
    tensors = Tensors(held, stored, {"t": table})
    decoded = rows.to_float().numpy()
    np.testing.assert_allclose(tensors.matrix("t.stored"), decoded, rtol=0, atol=close)
    look_up = Node(op="look_up", at=0, width=width, form="rows")
    graph = summed(look_up)
    graph = Graph(features=(Feature(table="t", leaf=0, key="f"),), nodes=graph.nodes, out=graph.out)
    ids, lengths = np.array([3, 3, 22, 0, 1]), np.array([2, 0, 3])
    jagged = Ids(address(ids), 5, lengths=address(lengths), keys=("f",))
    found = Engine(graph, lower(graph, tensors)).score(Inputs(3, {0: jagged}), logits=True)
    whole = rows.to_float().numpy().astype(np.float64).sum(1)
    wanted = [2 * whole[3], 0.0, whole[22] + whole[0] + whole[1]]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("columns", "words"), [(1, 16), (2, 256), (5, 40), (16, 7)])
def test_the_nearest_words_and_atoms(kernels: None, columns: int, words: int) -> None:
    rows = torch.from_numpy(numbers(100, columns))
    named = torch.from_numpy(numbers(words, columns, seed=1))
    codes = torch.empty(100, dtype=torch.uint8)
    nearest(rows, named, codes)
    wanted = torch.cdist(rows.double(), named.double()).argmin(1)
    assert torch.equal(codes.long(), wanted)
    unit = torch.nn.functional.normalize(named.double())
    most = torch.from_numpy(numbers(words, seed=2)).double().abs()
    times = (rows.double() @ unit.T).clamp(-most, most)[:, :, None]
    left = (rows.double()[:, None] - times * unit).norm(dim=2)
    found = likest(rows.double(), unit, most)
    assert torch.allclose(left.gather(1, found[:, None])[:, 0], left.amin(1), atol=1e-6)


def test_bytes_give_the_same_scores_on_every_kind_of_cpu() -> None:
    x, w = numbers(50, 130) * np.linspace(0, 3, 50, dtype=np.float32)[:, None], numbers(70, 130)
    layer = Node(op="linear", at=130, width=70, x=((0, 130),), name="w", inputs=130, outputs=70)
    found = []
    for kind in KERNELS:
        native.needed().embedcomp_kernels(kind)
        found.append(run(summed(dense(130), layer), {"w": w}, x, precision="int8"))
    native.needed().embedcomp_kernels(0)
    for scores in found[1:]:  # the last bit of a step may differ
        np.testing.assert_allclose(scores, found[0], rtol=1e-5, atol=2e-2)


def test_floats_become_bfloat16_as_torch_rounds_them(kernels: None) -> None:
    x = np.concatenate([numbers(999), np.array([np.inf, -np.inf, 1e-40, 3.4e38, 0.0, -0.0])])
    x = x.astype(np.float32)
    words = np.empty((len(x) + 1) // 2, np.uint32)
    native.needed().embedcomp_to_brain(x.ctypes.data, 1, len(x), words.ctypes.data)
    found = torch.from_numpy(words.view(np.int16)[: len(x)]).view(torch.bfloat16).float()
    wanted = torch.from_numpy(x).bfloat16().float()
    tiny = wanted.abs() < 1.2e-38  # which AVX512-BF16 takes for zero
    assert torch.equal(found[~tiny], wanted[~tiny])


def test_the_structures_are_as_large_as_in_c() -> None:
    sizes = (ctypes.c_int32 * 8)()
    native.needed().embedcomp_sizes(sizes)
    ours = (
        native.Stored, native.Piece, native.Op, native.Buffer, native.Program, native.Ids,
        native.Call, native.Probe,
    )  # fmt: skip
    assert list(sizes) == [ctypes.sizeof(structure) for structure in ours]
