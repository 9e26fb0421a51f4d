"""What plans are predicted to take, against what their programs are counted to do."""

from __future__ import annotations

import copy
import itertools
import json
import random
from functools import cache

import numpy as np
import pytest

from embedcomp import methods
from embedcomp.engine import calibrate, cost
from embedcomp.engine.arrays import as_array
from embedcomp.engine.cost import CostModel, Counts
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.ops import counts
from embedcomp.errors import BadSettings, BudgetTooSmall, LatencyTooSmall, LimitsTooSmall
from embedcomp.kernels import native
from embedcomp.modules.embedded import readers
from embedcomp.planning.choices import (
    Choice,
    Menu,
    candidates,
    empty_bytes,
    empty_on_meta,
)
from embedcomp.planning.folding import folded, narrowed
from embedcomp.planning.goal import LatencyBudget
from embedcomp.planning.latency import Timing
from embedcomp.planning.lowered import Lowered
from embedcomp.planning.plan import Plan, render
from embedcomp.planning.planner import _planned, plan
from embedcomp.planning.resident import resident
from embedcomp.planning.solvers import highs
from embedcomp.recipes import in_time
from embedcomp.recipes.in_time import Measured
from embedcomp.scorer.stand_alone import stand_alone
from embedcomp.sensitivity.layer import TableSpec
from embedcomp.storage import kinds as kinds_of_rows
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.swapping import swap
from tests import small

pytestmark = pytest.mark.skipif(native.library() is None, reason="the engine was not compiled")

IDS = {"c": 3.0}  # of a bag; those of the others have one
KNOWN = {}  # about the layers, whatever is planned
QUICK = ("half", "row_int8", "row_int4", "svd")
A, B, C = (f"embeddings.embedding_bags.t_{name}" for name in small.ROWS)


def programmed(model):
    """The graph of a model and its program."""
    batch = small.batch(0)
    made = stand_alone(model, lambda m, x: m(*x), (batch.dense, batch.sparse))
    arrays = {name: as_array(tensor) for name, tensor in made.held.items()}
    graph = made.standalone.graph
    return graph, lower(graph, made.standalone.tensors(arrays))


@cache
def original():
    return programmed(small.model())


FIRST = "first.linear"
known = cache(small.measured)  # a model, its layers and statistics, which tests here only read


@cache
def lowered():
    model, found, measured = known()
    layers = measured.measured(found).layers
    return Lowered(*original(), layers=layers, readers=readers(model), single_valued=small.SINGLE)


def timing(model=None, budget="1ms@64"):
    costs = CostModel(microseconds={}) if model is None else model
    return Timing(lowered(), costs, LatencyBudget.parse(budget), ids=IDS)


@pytest.fixture(scope="module")
def kinds():
    """Every kind of work that is calibrated."""
    return tuple({kind for case in calibrate._cases() for kind in case.counts})


@pytest.fixture
def costing(kinds):
    """Cost models in which all work is free but for some."""
    return lambda dear: CostModel(microseconds={**dict.fromkeys(kinds, 0.0), **dear})


def planned(model, budget, share=None, names=QUICK, times=None):
    small_one, found, measured = known()
    whole = sum(p.nbytes for p in small_one.parameters())
    most = None if share is None else int(share * whole)
    return plan(
        small_one,
        found,
        measured,
        most,
        names,
        small.SINGLE,
        timing=times or timing(model, budget),
        known=KNOWN,
    )


@pytest.mark.parametrize(
    ("text", "nanoseconds", "rows"),
    [
        ("200us@64", 200_000, 64),
        (" 1.5 ms @ 1", 1_500_000, 1),
        ("7µs@8", 7_000, 8),
        ("2x@4", 4_500, 4),
    ],
)
def test_latency_budgets_are_read(text, nanoseconds, rows):
    budget = LatencyBudget.parse(text)
    assert (budget.nanoseconds(9_000), budget.rows) == (nanoseconds, rows)


@pytest.mark.parametrize(
    "text", ["", "200", "200us", "200@64", "0us@64", "2us@0", "-2us@4", "2s@x", "0x@4", "2x"]
)
def test_what_is_no_latency_budget_is_refused(text):
    with pytest.raises(BadSettings, match="is not a time and a number of rows; write 200us@64"):
        LatencyBudget.parse(text)


def offered(name, spec):
    """Settings of a method for a layer; after one of rank 0 nothing is what it was."""
    found = methods.get(name).candidates(spec)
    return [s for s in found if isinstance(spec, TableSpec) or getattr(s, "rank", 1)]


def choice_of(name, spec, settings):
    return Choice(name, settings, empty_bytes(name, spec, settings), 0.0)


def picked(spec, choose):
    """Any choice for a layer, of all methods alike."""
    name = choose.choice([name for name in sorted(methods.every()) if offered(name, spec)])
    return choice_of(name, spec, choose.choice(offered(name, spec)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.matrix) for seed in range(3, 12))]
)
def test_the_work_of_a_plan_is_that_of_its_program(seed):
    choose = random.Random(seed)
    layers, chosen = chosen_by(lambda spec: picked(spec, choose))
    counting = timing()
    counted = counting.fixed_work
    for name, choice in chosen.items():
        spec = layers[name].spec
        empty = empty_on_meta(choice.method, spec, choice.settings)
        if isinstance(spec, TableSpec):
            counted += counting.of_table(name, empty)
        else:
            counted += counting.of_linear(name, empty, counting.lowered.inputs(name, chosen))
    graph, program = carried_out(layers, chosen)
    ids = {i: IDS.get(feature.name, 1) for i, feature in enumerate(graph.features)}
    done = counts(program.ops, 64, ids)
    assert counted.keys() == done.keys()
    assert counted == pytest.approx(done)
    as_resident_as_predicted(chosen, program)


# no layer here is square or in order of count; what is lowered of tiers is rows of a kind
# (tests/scorer/test_resident.py)
NAMES = sorted({*methods.every()} - {"monarch", "frequency_tiers", "trellis_coded"})


def middling(name, spec):
    found = offered(name, spec)
    return choice_of(name, spec, found[len(found) // 2])


@pytest.mark.slow
def test_layers_are_as_resident_as_the_plan_says_whatever_their_methods_are():
    """Every layer has another method in each turn, until tables and linear layers have had all."""
    specs = [layer.spec for layer in known()[1].layers.values()]
    left = {(type(spec), name) for spec in specs for name in NAMES if offered(name, spec)}
    tables, linears = itertools.count(), itertools.count()

    def choose(spec):
        names = [name for name in NAMES if offered(name, spec)]
        place = next(tables if isinstance(spec, TableSpec) else linears)
        name = names[place % len(names)]
        left.discard((type(spec), name))
        return middling(name, spec)

    assert {name for _, name in left} == {*NAMES}
    for turn in range(len(NAMES)):
        if not left:
            return
        tables, linears = itertools.count(3 * turn), itertools.count(2 * turn)
        layers, chosen = chosen_by(choose)
        as_resident_as_predicted(chosen, carried_out(layers, chosen)[1])
    assert not left


@pytest.mark.matrix
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_as_resident_as_its_plan_says(name):
    def choose(spec):
        return middling(name if offered(name, spec) else "keep", spec)

    layers, chosen = chosen_by(choose)
    assert any(choice.method == name for choice in chosen.values())
    as_resident_as_predicted(chosen, carried_out(layers, chosen)[1])


def chosen_by(choose):
    """A choice for each layer; layers are as the decoders of their tables leave them."""
    model, found, measured = known()
    layers = dict(measured.measured(found).layers)
    tables = {n: choose(layers[n].spec) for n in (A, B, C)}
    served = {
        n: (layers[n], methods.get(c.method).compress(layers[n], c.settings))
        for n, c in tables.items()
    }
    for name, reader in readers(model).items():
        layers[name] = narrowed(layers[name], reader, folded(reader, served, small.SINGLE))
    return layers, {n: tables.get(n) or choose(layer.spec) for n, layer in layers.items()}


def carried_out(layers, chosen):
    """The graph and the program of the small model with these choices."""
    model, found, measured = known()
    written = Plan(
        budget_bytes=0,
        bytes_before=0,
        bytes_after=0,
        layers=tuple(_planned(layers[name], choice) for name, choice in chosen.items()),
        untouched={},
        single_valued=tuple(small.SINGLE),
    )
    compressed = copy.deepcopy(model)
    swap.apply_(compressed, written, measured.measured(found).layers)
    return programmed(compressed)


def as_resident_as_predicted(chosen, program):
    found, counted = resident(lowered(), chosen), dict(program.resident)
    for name, choice in chosen.items():
        more = counted.pop(name) - found.pop(name)
        assert 0 <= more <= most_in_codebooks(name, choice), (choice, more)
    assert sum(counted.values()) == found.pop("") and not found


def most_in_codebooks(name, choice):
    """Bytes by which the codebooks of tiered rows may be larger than predicted."""
    served = lowered().shape(known()[1].layers[name].spec, choice).served
    kind = getattr(getattr(served, "stored", None), "kind", None)
    return 4 * 256 * small.DIM * len(kind.ends) if isinstance(kind, Tiered) else 0


@pytest.mark.slow
def test_readers_are_as_narrow_as_what_is_chosen_for_the_tables():
    low_rank = methods.get("low_rank").Settings
    counting = lowered()
    chosen = {A: Choice("low_rank", low_rank(rank=3, storage="float16"), 0, 0.0)}
    # a's codes are folded into the reader; the other layer gets the number of ids beside them
    whole = small.DIM * 3 + small.DENSE
    assert counting.inputs("first.linear", chosen) == (whole - small.DIM + 3,)
    assert counting.inputs("wide", chosen) == (whole - small.DIM + 3 + 1,)
    assert counting.inputs("wide", {}) == (whole,)
    # c has bags of several ids, so only the engine takes its codes
    chosen = {C: Choice("low_rank", low_rank(rank=2, storage="float16"), 0, 0.0)}
    assert counting.inputs("first.linear", chosen) == (whole - small.DIM + 2 + 1,)


@pytest.mark.slow
def test_no_candidate_is_spared_where_time_counts(costing):
    """One that loses no less than a smaller one may be faster."""
    model, found, measured = known()
    times, menus = timing(costing({}), "1ms@64"), {}
    plan(model, found, measured, None, ["low_rank"], small.SINGLE, timing=times, known=menus)
    tried = {c.settings for (layer, *_), menu in menus.items() if layer == FIRST for c in menu}
    assert set(candidates("low_rank", found.layers[FIRST].spec)) <= tried


@pytest.mark.slow
def test_what_is_slow_is_left_out(costing):
    slow = costing({"row_int8 rows": 1.0, "float32 rows": 1.0})
    fast = planned(slow, "1us@64", names=("half", "row_int8"))
    assert {p.method for p in fast.tables} == {"half"}
    assert fast.microseconds == 0 and fast.latency_budget == "1us@64"
    # the 64 + 64 + 3 * 64 ids of a row of tables in float32
    assert fast.microseconds_before == pytest.approx(320)
    assert {p.method for p in planned(slow, "1ms@64", names=("half",)).layers} == {"keep"}


@pytest.mark.slow
def test_one_table_may_be_slow_where_the_time_is_enough_for_it(costing):
    slow = costing({"float32 rows": 1.0})
    made = planned(slow, "70us@64", names=("row_int4",))
    kept = [p.layer for p in made.tables if p.method == "keep"]
    assert len(kept) == 1 and kept[0] != C and made.microseconds == pytest.approx(64)


@pytest.mark.slow
def test_a_latency_may_be_relative_to_the_originals(costing):
    model = costing({"float32 products": 0.01, "bfloat16 products": 0.004, "row_int4 rows": 0.05})
    made = planned(model, "1.6x@64")
    assert 0 < made.microseconds <= made.microseconds_before / 1.6
    assert made.loss == planned(model, f"{made.microseconds_before / 1.6}us@64").loss


@pytest.mark.slow
def test_both_limits_are_kept_to(costing):
    model = costing({"float32 products": 0.01, "bfloat16 products": 0.004, "row_int4 rows": 0.05})
    alone = {}
    for share in (None, 0.5, 0.25):
        for budget in ("1ms@64", "60us@64", "40us@64"):
            made = planned(model, budget, share)
            assert made.microseconds <= LatencyBudget.parse(budget).nanoseconds(0) / 1000
            assert share is None or made.bytes_after <= made.budget_bytes
            alone[share, budget] = made.loss
    for (share, budget), loss in alone.items():
        assert loss >= alone[None, budget] * (1 - 1e-3)  # one limit more, and HiGHS's gap
        assert loss >= alone[share, "1ms@64"] * (1 - 1e-3)


@pytest.mark.slow
def test_a_bound_that_nothing_keeps_to_names_the_fastest(costing):
    model = costing({"float32 rows": 1.0, "float16 rows": 0.25, "calls": 5.0})
    with pytest.raises(LatencyTooSmall) as told:
        planned(model, "20us@64", names=("half",))
    assert str(told.value) == (
        "the latency budget is 20.0 us a call of 64 rows, but the fastest plan found is predicted "
        "to take 85.0, of which 5.0 are outside the layers; raise the budget by 65.0, score fewer "
        "rows a call or allow more methods"
    )
    assert planned(model, "85us@64", names=("half",)).microseconds == pytest.approx(85)


@pytest.mark.slow
def test_two_limits_that_exclude_each_other_are_told_apart(costing):
    model = costing({"float16 rows": 1.0})  # what is small is slow
    with pytest.raises(LimitsTooSmall, match=r"keeps to both .* raise either budget") as told:
        planned(model, "100us@64", 0.55, names=("half",))
    assert "a latency of 100us@64" in str(told.value)
    with pytest.raises(BudgetTooSmall):
        planned(model, "1ms@64", 0.01, names=("half",))


@pytest.mark.parametrize("seed", range(6))
def test_the_best_within_both_limits_is_found(seed):
    draw = np.random.default_rng(seed)
    options = {}
    for layer in range(4):
        numbers = draw.integers(1, 100, (6, 3)).tolist()
        found = [
            Choice("x", (layer, i), n[0], n[1] / 100, n[2] - 20) for i, n in enumerate(numbers)
        ]
        options[str(layer)] = Menu(None, tuple(found))
    for bytes_, time in ((150, 60), (200, 20), (110, 100), (60, 0)):
        wanted = min(
            (
                sum(c.loss for c in picks)
                for picks in itertools.product(*options.values())
                if sum(c.bytes for c in picks) <= bytes_
                and sum(c.nanoseconds for c in picks) <= time
            ),
            default=None,
        )
        found = highs.least_loss_in_both(options, bytes_, time, 1.0)
        if wanted is None:
            assert found is None
            continue
        assert sum(c.bytes for c in found.values()) <= bytes_
        assert sum(c.nanoseconds for c in found.values()) <= time
        assert sum(c.loss for c in found.values()) == pytest.approx(wanted, rel=2 * highs.GAP)


def tried(model, budget, longer, names=QUICK, original=1.0, error=0.02):
    """Plans that are measured to take `longer` than predicted, and the original as well."""
    times = timing(model, budget)

    def measured(made):
        after, before = longer * made.microseconds, original * made.microseconds_before
        return Measured(before, after, error)

    return in_time.tried(lambda: planned(model, budget, names=names, times=times), measured, times)


DEAR = {"float32 products": 0.01, "bfloat16 products": 0.004, "row_int4 rows": 0.05, "calls": 5.0}


@pytest.mark.slow
def test_a_plan_that_is_measured_within_its_budget_is_taken(costing):
    model = costing(DEAR)
    (found,) = tried(model, "60us@64", 1.0)
    plan = planned(model, "60us@64")
    assert found.layers == plan.layers and found.in_time and not found.missed
    assert found.measured_microseconds == found.microseconds == plan.microseconds
    assert found.measured_microseconds_before == plan.microseconds_before
    (found,) = tried(model, "60us@64", 60 / plan.microseconds * 1.019)  # within the error
    assert found.in_time and not found.missed


@pytest.mark.slow
@pytest.mark.parametrize("longer", [1.35, 1.5])
def test_a_plan_that_takes_longer_than_predicted_is_made_again(costing, longer):
    model = costing(DEAR)
    found = tried(model, "60us@64", longer)
    first, last = found[0], found[-1]
    assert len(found) == 2 and first.layers == planned(model, "60us@64").layers
    assert first.measured_microseconds > 60 * 1.02 and not first.in_time
    assert last.measured_microseconds <= 60 and last.in_time
    # no better plan is predicted to take what can be measured to take as long as is allowed
    assert last.loss == planned(model, f"{60 / longer}us@64").loss
    assert in_time.best(found) is last


@pytest.mark.slow
def test_a_share_of_the_originals_time_is_one_of_its_measured_time(costing):
    model = costing(DEAR)
    (found,) = tried(model, "1.6x@64", 1.5, original=1.5)  # all is slower by as much
    assert found.in_time and found.times_allowed == pytest.approx(
        1.6 * found.microseconds / found.microseconds_before, rel=1e-4
    )
    first, last = tried(model, "1.6x@64", 1.7, original=1.2)
    assert not first.in_time and last.in_time
    assert last.measured_microseconds <= last.measured_microseconds_before / 1.6
    assert last.loss == planned(model, f"{1.6 * 1.7 / 1.2}x@64").loss


@pytest.mark.slow
def test_a_budget_that_is_missed_is_said_to_be(costing):
    model = costing({"float32 rows": 1.0, "float16 rows": 0.25, "calls": 5.0})
    found = tried(model, "100us@64", 1.25, names=("half",))  # the fastest is predicted to take 85
    assert len(found) == 1 and found[0].microseconds == 85
    assert found[0].missed == (
        "the latency budget 100us@64 is missed: a call is measured at 106.2 us, 1.06 times what "
        "that allows, and no plan that was tried is nearer to it; raise the budget or allow more "
        "methods"
    )
    assert str(render(found[0]).caption) == found[0].missed
    with pytest.raises(LatencyTooSmall):
        tried(model, "20us@64", 1.0, names=("half",))


@pytest.mark.slow
def test_the_nearest_plan_is_taken_after_some_rounds(costing, monkeypatch):
    monkeypatch.setattr(in_time, "ROUNDS", 2)
    model, longer = costing(DEAR), iter([1.3, 1.8])
    times = timing(model, "60us@64")
    found = in_time.tried(
        lambda: planned(model, "60us@64", times=times),
        lambda made: Measured(500.0, next(longer) * made.microseconds, 0.01),
        times,
    )
    assert len(found) == 2 and not any(plan.in_time for plan in found)
    assert found[0].measured_microseconds < found[1].measured_microseconds
    assert in_time.best(found) is found[0]


def test_times_are_compared_turn_by_turn():
    before = np.array([1.0, 1.0, 2.0, 3.0, 1.0, 4.0, 1.0])
    times = np.array([0.5, 0.5, 0.5, 0.5, 0.45, 0.6, 0.4])
    found = Measured.of(1e-6 * np.stack([before, before * times], 1))
    assert found.before == pytest.approx(1.0)  # what slowed the machine down counts for nothing
    assert found.after == pytest.approx(np.quantile(before * times, 0.2))
    assert found.error == pytest.approx((0.5 - 0.475) / 2 / 0.5)


@pytest.mark.slow
def test_a_plan_says_what_was_measured(costing):
    (made,) = tried(costing(DEAR), "60us@64", 1.0)
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    times = made.microseconds_before / made.microseconds
    told = f"{made.microseconds_before:,.1f} to {made.microseconds:,.1f} us"
    wanted = f", {told} a call (budget 60us@64; measured {told}, {times:.2f}x ± 2%)"
    assert str(render(made).title).endswith(wanted) and render(made).caption is None


@pytest.mark.slow
def test_a_plan_keeps_what_it_was_planned_for(costing):
    made = planned(costing({"float32 rows": 1.0}), "100us@64", 0.5)
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))).microseconds == made.microseconds
    title = str(render(made).title)
    assert f"320.0 to {made.microseconds:,.1f} us a call (budget 100us@64)" in title
    old = made.to_dict()
    for name in [name for name in old if name == "latency_budget" or "micro" in name]:
        del old[name]
    assert Plan.from_dict(old).microseconds is None


def test_coefficients_are_found_again():
    true = {"a": 0.5, "b": 0.002, "c": 3.0, "unseen": 0.0}
    draw = np.random.default_rng(0)
    work = [Counts({k: float(draw.integers(1, 1000)) for k in "abc"}) for _ in range(20)]
    found = calibrate.fit(
        [calibrate.Timed(w, sum(true[k] * n for k, n in w.items())) for w in work]
    )
    assert found == pytest.approx({k: true[k] for k in "abc"})


def test_a_cost_model_is_a_file(tmp_path):
    model = CostModel(microseconds={"calls": 5.0, "rows": 0.1}, machine="any")
    model.save(tmp_path / "model.json")
    assert CostModel.load(tmp_path / "model.json") == model
    assert model.of(Counts({"calls": 1, "rows": 64})) == pytest.approx(11.4)
    with pytest.raises(BadSettings, match=r"does not know what 'tiles' cost; make it again"):
        model.of(Counts({"tiles": 1}))
    for text in ("", "[]", "{}", '{"format": 1, "machine": "", "microseconds": {"calls": "x"}}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(BadSettings, match=r"is not a cost model .* `embedcomp calibrate"):
            CostModel.load(tmp_path / "model.json")
    (tmp_path / "model.json").write_text('{"format": 9, "machine": "", "microseconds": {}}')
    with pytest.raises(BadSettings, match="has format 9"):
        CostModel.load(tmp_path / "model.json")


def test_a_machine_is_calibrated_once(tmp_path, monkeypatch):
    made = []

    def calibrated():
        made.append(CostModel(microseconds={"calls": 5.0}, machine=calibrate.cpu()))
        return made[-1]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibrate, "calibrated", calibrated)
    first, second = calibrate.of_this_machine(), calibrate.of_this_machine()
    assert first == second and len(made) == 1


def test_every_operation_of_the_engine_is_calibrated(kinds):
    assert {f"{name} numbers" for name in cost.SLOW} <= set(kinds)
    assert {f"{form} products" for form in native.FORMATS} <= set(kinds)
    assert {"mapped", "ranked", "probed", "mixed rows", "mixed numbers"} <= set(kinds)
    every = [
        *kinds_of_rows.examples(20, 9),
        kinds_of_rows.named("product3x8"),
        Trellis((20,), (9,)),
    ]
    for kind in every:
        name = kind.reads(20, 9).kind
        assert {f"{name} {what}" for what in ("rows", "numbers", "vectors")} <= set(kinds)


@pytest.mark.slow
def test_what_no_choice_changes_is_within_the_latency_too(costing, kinds):
    """A time that is enough for a plan's layers alone is not enough for the plan."""
    model = costing(dict.fromkeys(kinds, 0.001))  # so that something is left whatever is chosen
    fixed = timing(model).fixed / 1000
    budget = round(planned(model, "1.4x@64").microseconds - fixed / 2, 1)
    assert fixed > 0.2 and planned(model, f"{budget}us@64").microseconds <= budget
