"""Work that is counted from shapes, against loops that go about it as kernels.inc does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from statistics import mean

import pytest

from embedcomp.engine import calibrate, cost
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.ops import LookUp, counts
from embedcomp.engine.pack import BLOCK
from embedcomp.kernels import clock, native
from embedcomp.storage.kind import Reads
from embedcomp.storage.kinds import named
from embedcomp.storage.kinds.csr import Csr
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.probes import Hash, Probes

TILES, PANEL, LANES = (6, 3, 1), 64, 16  # rows, columns and numbers of a vector
IN_A_WORD = {"float32": 1, "bfloat16": 2, "int8": 4}


def ceil(a, b):
    return (a + b - 1) // b


def multiplied(rows, inputs, outputs, form, times):
    """A product, loop by loop."""
    done, words = Counter(), ceil(inputs, IN_A_WORD[form])
    for block in range(0, rows, BLOCK):
        vectors = min(BLOCK, rows - block) * times
        done["operations"] += 1
        for panel in range(0, outputs, PANEL):
            wide = ceil(min(PANEL, outputs - panel), LANES)
            done["weights"] += words * wide * 64  # bytes, read once a block from afar
            row = 0
            for tile in TILES:
                while row + tile <= vectors:
                    done["tiles"] += 1
                    for _ in range(words):
                        done[f"{form} steps"] += 1
                        done[f"{form} loads"] += wide
                        done[f"{form} products"] += wide * tile
                    row += tile
            if form != "float32":
                for _ in range(0, vectors, 16):
                    done[f"{form} squares"] += wide
                    done[f"{form} cubes"] += wide * ceil(words, 16)
    if form != "float32":  # rows are rounded before
        done[f"{form} rounded"] = rows * times
        done[f"{form} inputs"] = rows * times * inputs
    return dict(done)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "times"),
    [(1, 5, 1, 1), (7, 16, 64, 1), (64, 33, 130, 1), (200, 7, 65, 1), (10, 12, 20, 5)],
)
@pytest.mark.parametrize("form", native.FORMATS)
def test_a_product_is_counted_as_the_kernels_go_about_it(rows, inputs, outputs, times, form):
    found = cost.linear(rows, inputs=inputs, outputs=outputs, form=form, times=times)
    assert found == multiplied(rows, inputs, outputs, form, times)


def test_bringing_pieces_beside_each_other_is_counted_a_row_and_piece():
    one = cost.linear(70, inputs=30, outputs=8, times=2)
    three = cost.linear(70, inputs=30, outputs=8, times=2, pieces=3)
    more = {kind: number - one[kind] for kind, number in three.items() if number != one[kind]}
    assert more == {"pieces": 70 * 3, "brought numbers": 70 * 30 * 2}


@pytest.mark.parametrize("row_bytes", [1, 12, 64, 65, 160])
def test_a_row_of_a_large_table_takes_the_lines_that_it_lies_in(row_bytes):
    lines = mean(ceil(start + row_bytes, 64) for start in range(64))  # wherever it begins
    for size, kinds in (
        (1 << 20, []),
        ((1 << 20) + 1, ["far"]),
        ((1 << 25) + 1, ["far", "distant"]),
    ):
        stored = Reads(kind="k", numbers=8, vectors=1, row_bytes=row_bytes, stored_bytes=size)
        found = cost.look_up(10, stored, ids=3)
        wanted = {f"{kind} lines": pytest.approx(30 * lines) for kind in kinds}
        assert {kind: n for kind, n in found.items() if kind.endswith("lines")} == wanted


@pytest.mark.parametrize("index", ["mapped", "ranked"])
def test_a_lookup_is_counted_an_id_and_a_bag(index):
    stored = replace(named("row_int8").reads(9, 20), index=index)
    assert cost.look_up(BLOCK + 1, stored, ids=2) == {
        "operations": 2,
        "bags": BLOCK + 1,
        "row_int8 rows": 2 * (BLOCK + 1),
        "row_int8 numbers": 2 * (BLOCK + 1) * 20,
        "row_int8 vectors": 2 * (BLOCK + 1) * 2,  # 20 columns are two vectors
        index: 2 * (BLOCK + 1),
    }


@pytest.mark.parametrize("combine", ["concat", "add", "multiply"])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_of_several_probes_are_counted_each(combine, scaled):
    three = Probes(probes=(Hash(rows=9, salt=0),) * 3, combine=combine)
    read = 3 * 2 * BLOCK
    wanted = {
        "operations": 1,
        "bags": BLOCK,
        "row_int8 rows": read,
        "row_int8 numbers": 20 * read,
        "row_int8 vectors": 2 * read,
        "probed": read,
    }
    if combine == "multiply" or (combine == "add" and scaled):
        wanted |= {"mixed rows": read, "mixed numbers": 20 * read}
    stored = three.reads(named("row_int8").reads(9, 20), scaled)
    assert cost.look_up(BLOCK, stored, ids=2) == wanted


@pytest.mark.parametrize(
    ("kind", "width", "as_", "numbers", "vectors", "stored"),
    [
        ("float32", 17, "float32", 17, 2, 100 * 68),
        ("product2x8", 40, "codebook", 40, 4, 200),  # two words of 20 columns: 2 vectors each
        ("product5x8", 40, "codebook", 40, 5, 500),
        ("product40x4", 40, "clustered", 40, 3, 2000),  # a number each, summed as one row
        ("clustered3", 40, "clustered", 40, 3, 1500),
        ("sparse3x200", 40, "atoms", 40, 9, 600),
        (Csr(600), 20, "csr", 6, 2, 400 + 600 * 3),  # a byte a column, and two of a value
        (Csr(600), 300, "csr", 6, 19, 400 + 600 * 4),
        ("column_int8", 16, "column_int8 16", 16, 1, 1600),
        ("column_int8", 15, "column_int8", 15, 1, 1500),
        ("column_int4", 16, "column_int4", 16, 1, 800),
        ("column_mixed3", 16, "column_mixed", 16, 1, 600),
        ("row_int4", 5, "row_int4", 5, 1, 800),
    ],
)
def test_rows_are_read_by_their_kind(kind, width, as_, numbers, vectors, stored):
    kind = named(kind) if isinstance(kind, str) else kind
    found = kind.reads(100, width)
    assert (found.kind, found.numbers, found.vectors) == (as_, numbers, vectors)
    assert found.stored_bytes == stored
    held = sum(t.nbytes for n, t in kind.empty(100, width).items() if n != "grid")
    assert stored == held - (4 if isinstance(kind, Csr) else 0)  # where the last row ends


def program(graph, tensors):
    return lower(graph, tensors).ops


def test_products_of_pairs_are_counted_a_row_and_tile():
    n, width, rows = 8, 10, 5  # pairs above the diagonal: both groups of 6 rows, one panel
    found = counts(program(*calibrate._dots(n, width)), rows)
    tiles = 2
    assert found["dots"] == rows and found["turned numbers"] == rows * n * width
    assert found["tiles"] == rows * tiles and found["runs"] == rows * (n - 1)
    assert found["float32 steps"] == found["float32 loads"] == rows * tiles * width
    assert found["float32 products"] == rows * tiles * width * 6
    assert found["summed numbers"] == rows * n * (n - 1) / 2
    assert found["calls"] == 1 and found["rows"] == rows


def test_vectors_that_no_layer_rounded_are_rounded_for_their_products():
    n, rows = 8, 5
    for width, words in ((9, 5), (10, 5)):
        graph, tensors = calibrate._dots(n, width)
        found = counts(lower(graph, tensors, precision="bfloat16").ops, rows)
        # an odd number cannot lie in pairs: both sides are rounded by the product itself
        assert found["bfloat16 inputs"] == (rows * 2 * n * width if width % 2 else 0)
        assert found["bfloat16 products"] == rows * 2 * words * 6  # two tiles of six vectors
        assert found["bfloat16 squares"] == found["bfloat16 cubes"] == rows  # one of each


def test_products_of_many_pairs_are_counted_by_squares_too():
    found = cost.dots(3, vectors=27, others=40, width=70, tiles=1, runs=1, form="bfloat16")
    assert found["bfloat16 squares"] == 3 * 2 * 3 and found["bfloat16 cubes"] == 3 * 2 * 3 * 3


def test_functions_are_counted_a_number_and_slow_ones_apart():
    width, rows = 480, 3
    found = counts(program(*calibrate._pairs(1)), rows)
    # multiply, add, power, add of one piece each
    assert found["quick numbers"] == 3 * rows * width
    assert found["power numbers"] == rows * width
    assert found["single rows"] == rows * 5 and found["pieces"] == 0  # these and the sum
    found = counts(program(*calibrate._pairs(8)), rows)
    # two operations of two operands of 8 pieces each
    assert found["pieces"] == rows * 2 * 2 * 8
    assert found["brought numbers"] == rows * 2 * 2 * width


def test_a_program_of_lookups_has_the_bags_that_its_features_are_given():
    ops = program(*calibrate._tables(named("row_int8"), 16))
    one, some = counts(ops, 64), counts(ops, 64, {0: 5, 3: 2})
    assert one["row_int8 rows"] == 64 * 24 and one["bags"] == 64 * 24
    assert some["row_int8 rows"] == 64 * (22 + 5 + 2) and some["bags"] == one["bags"]


@pytest.mark.parametrize("kind", [Tiered((40, 256), (9, 3)), Trellis((40, 256), (9, 3))])
def test_tiers_have_a_mean_row(kind):
    (op, *_) = (o for o in program(*calibrate._tables(kind, 16)) if isinstance(o, LookUp))
    size = {"row_bytes": 40 * 9 + 216 * 3, "row_bits": ceil(40 * 9, 8) + ceil(216 * 3, 8)}
    assert op.row.row_bytes == ceil(size[kind.unit], calibrate.TABLE_ROWS)
    assert op.row.kind == "tiered"


class Machine:
    """An engine and a clock: a call takes what the true costs say, and often much more.

    The first call after another program's has its weights to bring near, and something else runs
    in two turns of three.
    """

    def __init__(self):
        self.now, self.last = 0.0, None

    def thread_time(self):
        return self.now

    def engine(self, graph, program):
        engine = type("Engine", (), {"turns": 0})()

        @cache
        def predicted(rows):
            return true.of(counts(program.ops, rows))

        def score(inputs, logits):
            taken = predicted(inputs.rows)
            if self.last is not engine:
                taken += 1000
                engine.turns += 1
            if engine.turns % 3:
                taken *= 3
            self.last, self.now = engine, self.now + 1e-6 * taken

        engine.score = score
        return engine


class True_:
    """Microseconds of every kind of work, all different."""

    def of(self, work):
        return sum(self.unit(kind) * number for kind, number in work.items())

    def unit(self, kind):
        return 1e-3 * (1 + sum(kind.encode()) % 17)


true = True_()


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    monkeypatch.setattr(clock.time, "thread_time", found.thread_time)
    monkeypatch.setattr(calibrate, "Engine", found.engine)
    few = {"BATCHES": (1, 64), "FAR_BYTES": (1 << 22,), "WIDTHS": (1, 4, 16)}
    for name, values in {**few, "LAYERS": calibrate.LAYERS[:5]}.items():
        monkeypatch.setattr(calibrate, name, values)
    return found


@pytest.mark.slow
def test_calibration_finds_what_programs_take_whatever_else_runs(machine):
    found = calibrate.timed()
    for one in found:
        assert one.microseconds == pytest.approx(true.of(one.counts))
    model = calibrate.modelled(found)
    for one in found:
        assert model.of(one.counts) == pytest.approx(one.microseconds, rel=1e-6)


def test_errors_are_relative_and_no_work_is_worth_less_than_nothing():
    def took(microseconds, **work):
        return calibrate.Timed(cost.Counts(work), microseconds)

    # no cost fits both; the best for relative errors minimises (c - 1)^2 + (c / 10 - 1)^2
    assert calibrate.fit([took(1, a=1), took(10, a=1)])["a"] == pytest.approx(1.1 / 1.01)
    found = calibrate.fit([took(10, a=10), took(8, a=10, b=5), took(10, a=10)])
    assert found["b"] == 0
