"""Bytes of numbers in a scorer's memory, against the arrays that are there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from torch import nn

from embedcomp.engine import calibrate
from embedcomp.engine.arrays import as_array
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.program import Program
from embedcomp.engine.tensors import bytes_by_layer, bytes_by_name
from embedcomp.kernels import native
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedEmbedding
from embedcomp.planning.planner import by_name
from embedcomp.planning.resident import _located
from embedcomp.recipes.evaluate import render
from embedcomp.scorer.by_torch import _stored
from embedcomp.scorer.interpreted import Interpreted
from embedcomp.scorer.portable import Portable
from embedcomp.scorer.stand_alone import stand_alone
from embedcomp.storage import kinds
from embedcomp.storage.kind import Kind
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.rows import StoredRows
from embedcomp.swapping import swap
from tests import small

TABLE, LAYER, LOW_RANK = "embeddings.embedding_bags.t_a", "deep.1", "deep.4"


def compressed() -> nn.Module:
    """The small model with a table of bytes and linear layers of few bits."""
    model, found, measured = small.measured()
    rank = {"method": "low_rank", "rank": 1, "storage": "float16"}
    wanted = {TABLE: "row_int8", LAYER: "row_int4", LOW_RANK: rank}
    made = copy.deepcopy(model)
    swap.apply_(made, by_name(model, found, wanted), measured.measured(found).layers)
    return made


def held_by(program: Program) -> int:
    """Bytes of all arrays that a program keeps."""
    found, waiting = {}, [program.held]
    while waiting:
        one = waiting.pop()
        if isinstance(one, np.ndarray):
            found[native.address(one), one.nbytes] = one.nbytes
        elif isinstance(one, tuple | list):
            waiting += one
    return sum(found.values())


needs_engine = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")


@pytest.mark.slow
@needs_engine
def test_all_that_a_program_keeps_is_counted_to_a_layer() -> None:
    batch, model = small.batch(0), compressed()
    made = stand_alone(model, lambda m, x: m(*x), (batch.dense, batch.sparse))
    arrays = {name: as_array(tensor) for name, tensor in made.held.items()}
    alone = made.standalone
    assert alone.graph is not None
    program = lower(alone.graph, alone.tensors(arrays))
    assert sum(program.resident.values()) == held_by(program)
    assert program.resident[TABLE] == 300 * (small.DIM + 4)  # as it is stored
    # the weight as floats, outputs in whole vectors of 16, and a bias
    assert program.resident[LAYER] == 4 * (24 * 32 + 20)
    assert program.resident[LOW_RANK] == 4 * (20 * 16 + 1 * 16 + 1)
    narrow = lower(alone.graph, alone.tensors(arrays), precision="bfloat16")
    assert narrow.resident[LAYER] == 4 * (24 // 2 * 32 + 20)


@needs_engine
@pytest.mark.parametrize("kind", kinds.examples(calibrate.TABLE_ROWS, 16), ids=lambda k: k.name)
def test_rows_of_every_kind_are_as_resident_as_predicted(kind: Kind) -> None:
    _, tensors = calibrate._tables(kind, 16)
    held = (a for a in tensors.table("t0").held if isinstance(a, np.ndarray))
    more = sum(bytes_by_name(("", array) for array in held).values())
    rows = StoredRows(calibrate.TABLE_ROWS, 16, kind)
    more -= _located(CompressedEmbedding(calibrate.TABLE_ROWS, 16, rows, decode=None))
    # bits of the columns of tiers are not known before
    assert 0 <= more <= (2 * 4 * 256 * 16 if isinstance(kind, Tiered) else 0)


@pytest.mark.slow
def test_torch_reads_tables_as_they_are_stored_and_decoded_weights() -> None:
    batch, model = small.batch(0), compressed()
    made = stand_alone(model, lambda m, x: m(*x), (batch.dense, batch.sparse))
    for runs in (
        Interpreted(made.standalone, made.held),
        Portable(made.standalone, made.program, made.held),
    ):
        assert runs.resident[TABLE] == 300 * (small.DIM + 4)
        assert runs.resident[LAYER] == 4 * (24 * 20 + 20)
        assert runs.resident[LOW_RANK] == 4 * (20 + 1 + 1)


def test_the_models_own_code_reads_layers_as_they_are_stored() -> None:
    model = compressed()
    found = _stored(model)
    assert sum(found.values()) == module_bytes(model)
    for name in (TABLE, LAYER, LOW_RANK, "wide"):
        assert found[name] == module_bytes(model.get_submodule(name))


def test_an_array_counts_once_to_its_first_name() -> None:
    one, other = np.zeros(3), np.zeros(5, np.float32)
    assert bytes_by_name([("a", one), ("b", one), ("b", other)]) == {"a": 24, "b": 20}
    held = {"a.b.stored": one, "a.bc": other, "a.b.grid": other[:2]}
    assert bytes_by_layer(held, ["a.b"]) == {"a.b": 32, "a": 20}


def test_evaluations_show_what_is_resident_where_it_is_not_what_is_stored() -> None:
    def evaluated(resident: int) -> dict[str, dict[str, object]]:
        sizes = {"total": 100, "resident": resident, "vocabularies": 0, "program": 0, "disk": 0}
        figures = {"auc": 0.5, "logloss": 0.5, "calibration": 1.0}
        speed = dict.fromkeys(("1", "64", "1024"), 1.0)
        return {"m": {**figures, "bytes": sizes, "rows_per_second": speed}}

    for resident, shown in ((100, False), (110, False), (90, False), (111, True), (89, True)):
        columns = [column.header for column in render(evaluated(resident)).columns]
        assert ("resident" in columns) == shown
