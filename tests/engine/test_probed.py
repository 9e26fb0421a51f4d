"""What the engine reads by formulas, against torch, which is held to whole numbers elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from embedcomp.engine.arrays import as_array
from embedcomp.engine.engine import Engine, Ids, Inputs
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.tensors import StoredMatrix, Table, Tensors
from embedcomp.errors import BadArtifact
from embedcomp.graph.graph import Feature, Graph, Node
from embedcomp.kernels import native
from embedcomp.kernels.native import address
from embedcomp.modules.table import CompressedBag
from embedcomp.storage.decode import Affine
from embedcomp.storage.index import Probed, probes_of
from embedcomp.storage.kinds import named
from embedcomp.storage.kinds.csr import Csr
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.names import STORAGES
from embedcomp.storage.probes import Combine, Digit, Hash, Permuted, Probe, Probes
from embedcomp.storage.rows import StoredRows
from tests.covering import in_pairs
from tests.engine.conftest import KERNELS
from tests.engine.test_look_up import engine, expected, ones, score

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")

KEPT = 211
COMBINES: tuple[Combine, ...] = ("concat", "add", "multiply")
CODES = ("product1x8", "product3x4", "clustered3", "sparse2x16", "tiered", "csr")
# by how many they are
PROBES: dict[int, tuple[Probe, ...]] = {
    1: (Hash(rows=KEPT - 50, salt=3, start=50),),
    2: (Digit(rows=40, divisor=7, start=1), Permuted(rows=199, first=90, stride=2, salt=5)),
    3: (Hash(rows=100, salt=1), Digit(rows=64, start=100), Hash(rows=KEPT, salt=2)),
}


def kind(storage: str, width: int):
    if storage == "tiered":
        return Tiered((9, 100, KEPT), (width, -(-width // 2), -(-width // 4)))
    return Csr(KEPT * width // 2) if storage == "csr" else named(storage)


@cache
def rows_of(storage: str, width: int) -> StoredRows:
    """Rows that tests only read."""
    torch.manual_seed(0)
    stored = StoredRows(KEPT, width, kind(storage, width))
    stored.fill(torch.randn(KEPT, width) + 2)
    return stored


def bag(
    storage: str, width: int, probes: Probes, ids: int = 700, pooling: str = "sum"
) -> CompressedBag:
    """A table without a decoder; rows around the stored ones give themselves away."""
    stored, index = rows_of(storage, width), Probed(KEPT, probes)
    dim = index.width(width)
    return CompressedBag(ids, dim, pooling, stored, decode=None, index=index, padding_idx=5)


@in_pairs(kernels=KERNELS, storage=(*STORAGES, *CODES), width=(7, 16), combine=COMBINES)
def test_every_id_reads_what_its_formulas_say(
    kernels: None, storage: str, width: int, combine: Combine
) -> None:
    random = np.random.default_rng(1)
    for count, own, pooling in product(PROBES, (0, 30), ("sum", "mean")):
        probes = Probes(probes=PROBES[count], combine=combine, own=own, own_start=KEPT - 3 * own)
        table = bag(storage, width, probes, pooling=pooling)
        made = engine(table)
        several = random.integers(0, 4, 300)
        for lengths in (np.ones(300, np.int64), several):
            ids = random.integers(0, 700, lengths.sum())
            ids[: len(ids) // 2] %= 40  # of the prefix, the padding among them
            found, wanted = score(made, ids, lengths), expected(table, ids, lengths)
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-3)
        if pooling == "sum":
            counts = random.standard_normal(len(ids)).astype(np.float32)
            found = score(made, ids, several, counts)
            wanted = expected(table, ids, several, counts)
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-2)


EXTREME = (
    Digit(rows=211),
    Digit(rows=211, divisor=65_537),
    Digit(rows=101, divisor=(1 << 32) + 1),
    Hash(rows=211, salt=(1 << 31) - 1),
    Permuted(rows=211, first=1 << 33, stride=3, salt=4),
    Permuted(rows=2, salt=1),
)


@in_pairs(kernels=KERNELS, probe=EXTREME, base=(0, (1 << 31) - 150, (1 << 32) - 150, 1 << 40))
def test_ids_of_all_sizes_read_the_row_of_the_formula(
    kernels: None, probe: Probe, base: int
) -> None:
    probes = Probes(probes=(probe, replace(probe, start=probe.start + KEPT - probe.rows)))
    table = bag("float32", 2, probes, base + 400)
    ids = base + np.arange(6, 400)  # after the padding
    stored = table.stored.to_float().double().numpy()
    rows = probes.rows(torch.from_numpy(ids)).numpy()
    wanted = stored[rows].reshape(-1, 4) @ np.linspace(-1, 2, 4)
    np.testing.assert_allclose(score(engine(table), ids, ones(ids)), wanted, rtol=1e-5, atol=1e-5)


@in_pairs(
    kernels=KERNELS,
    storage=("float16", "column_int8", "row_int4", "column_mixed3"),
    combine=COMBINES,
    form=("", "affine", "residual"),
)
def test_a_decoder_follows_what_is_read(
    kernels: None, storage: str, combine: Combine, form: str
) -> None:
    """Its bias counts once an id, whatever an id reads."""
    probes = Probes(probes=PROBES[2], combine=combine, own=30, own_start=150)
    table = bag(storage, 8, probes)
    codes = table.code_width
    dim = codes - 2 if form == "residual" else 12
    if form:
        torch.manual_seed(0)
        decode = Affine(codes - dim if form == "residual" else codes, dim, "float32", True,
                        residual=form == "residual")  # fmt: skip
        decode.fill(torch.randn(decode.k, dim), torch.randn(dim))
        table = CompressedBag(
            700, dim, "sum", table.stored, decode=decode, index=table.index, padding_idx=5
        )
    else:
        dim = codes
    held = {f"t.{n}": as_array(t) for n, t in table.state_dict().items()}
    matrices = {"t.stored": StoredMatrix(kind=table.stored.kind, rows=KEPT, width=8)}
    if form:
        for name, part in (("stored", decode.stored), ("stored_bias", decode.stored_bias)):
            described = StoredMatrix(kind=part.kind, rows=part.rows, width=dim)
            matrices[f"t.decode.{name}"] = described
    described = Table(
        rows=700, dim=dim, pooling="sum", padding_idx=5, stored=True, decodes=form,
        probes=probes_of(table.index),
    )  # fmt: skip
    look_up = Node(op="look_up", at=0, width=dim, form="rows")
    total = Node(op="sum", at=dim, width=1, times=dim, x=((0, dim),))
    features = (Feature(table="t", leaf=0, key="f"),)
    graph = Graph(features=features, nodes=(look_up, total), out=dim)
    made = Engine(graph, lower(graph, Tensors(held, matrices, {"t": described})))
    random = np.random.default_rng(0)
    lengths = random.integers(0, 4, 200)
    ids = random.integers(0, 60, lengths.sum())
    offsets = torch.from_numpy(np.append(0, lengths.cumsum()))
    with torch.no_grad():
        wanted = table(torch.from_numpy(ids), offsets).sum(1)
    np.testing.assert_allclose(score(made, ids, lengths), wanted, rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("storage", ["float16", "column_int4", "product1x8", "clustered3"])
def test_tables_read_one_pool_in_one_place(storage: str) -> None:
    """Its bytes count once, and so does what it takes to decode it."""
    torch.manual_seed(0)
    stored = StoredRows(KEPT, 4, storage)
    stored.fill(torch.randn(KEPT, 4))
    held: dict[str, np.ndarray] = {}
    matrices, tables, nodes, features, built = {}, {}, [], [], {}
    for place in range(3):
        name = f"t{place}"
        probes = tuple(Hash(rows=KEPT, salt=2 * place + j) for j in range(2))
        index = Probed(KEPT, Probes(probes=probes))
        built[name] = CompressedBag(90, 8, "sum", stored, decode=None, index=index)
        held |= {f"{name}.{n}": as_array(t) for n, t in built[name].state_dict().items()}
        matrices[f"{name}.stored"] = StoredMatrix(kind=stored.kind, rows=KEPT, width=4)
        tables[name] = Table(rows=90, dim=8, pooling="sum", stored=True, probes=probes_of(index))
        features.append(Feature(table=name, leaf=0, key=name))
        nodes.append(Node(op="look_up", at=8 * place, width=8, which=place, form="rows"))
    total = Node(op="sum", at=24, width=1, times=24, x=((0, 24),))
    graph = Graph(features=tuple(features), nodes=(*nodes, total), out=24)
    program = lower(graph, Tensors(held, matrices, tables))
    alone = lower(
        Graph(features=tuple(features[:1]),
              nodes=(nodes[0], replace(total, at=8, times=8, x=((0, 8),))), out=8),
        Tensors(held, matrices, {"t0": tables["t0"]}),
    )  # fmt: skip
    decoders = sum(op.nbytes for op in program.ops if op.layer)
    decoder = sum(op.nbytes for op in alone.ops if op.layer)
    assert sum(program.resident.values()) - decoders == sum(alone.resident.values()) - decoder
    ids = np.random.default_rng(0).integers(0, 90, 3 * 50)
    lengths = np.ones(150, np.int64)
    jagged = Ids(address(ids), 150, lengths=address(lengths), keys=tuple(tables))
    found = Engine(graph, program).score(Inputs(50, {0: jagged}), logits=True)
    parts = [
        table.to_float()[torch.from_numpy(ids[50 * place : 50 * place + 50])].sum(1)
        for place, table in enumerate(built.values())
    ]
    np.testing.assert_allclose(found, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-4)


def test_formulas_that_read_beyond_the_rows_of_the_file_are_refused() -> None:
    table = bag("float32", 4, Probes(probes=PROBES[1]))
    held = {f"t.{n}": as_array(t)[:-1] for n, t in table.state_dict().items()}
    matrix = StoredMatrix(kind=table.stored.kind, rows=KEPT - 1, width=4)
    described = Table(rows=700, dim=4, pooling="sum", stored=True, probes=probes_of(table.index))
    with pytest.raises(BadArtifact, match="t reads stored rows up to 210, but has 210"):
        Tensors(held, {"t.stored": matrix}, {"t": described}).table("t")


def test_all_kinds_and_combinations_are_named_as_in_the_engine() -> None:
    assert native.PROBES == ("digit", "hash", "permuted")
    for combine, probes in product(COMBINES, PROBES.values()):
        at = native.Stored()
        Probes(probes=probes, combine=combine).place(at, None)
        assert at.probe_count == len(probes) and native.COMBINES[at.combine] == combine
