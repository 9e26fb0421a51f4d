"""Rows of chunks, and masks that move while they train, held against hand values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedcomp.errors import BadSettings
from embedcomp.methods import get
from embedcomp.sensitivity.layer import Layer, TableSpec, TableStatistics
from embedcomp.storage.columns import Columns
from embedcomp.storage.kind import CannotStore
from embedcomp.storage.kinds import of
from embedcomp.storage.kinds.chunked import Bytes, Halves, chunks_of, columns_of, cut, spread
from embedcomp.storage.rows import keeping_unrounded
from embedcomp.storage.sparse import (
    DynamicallySparse,
    GraduallyPruned,
    Schedule,
    SparseRows,
    cubic,
    replaced,
)
from embedcomp.storage.training import Moved, Progress
from embedcomp.train.optim import LazyAdam, RowwiseAdagrad, begin_anew

KINDS = (Halves, Bytes)
STEPS, ROWS, WIDTH = 40, 30, 10  # rows of three chunks


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def test_a_row_has_as_few_chunks_as_can_be_and_they_are_even() -> None:
    sizes = {width: (chunks_of(width), columns_of(width)) for width in (1, 3, 4, 5, 9, 16, 18)}
    assert sizes == {1: (1, 1), 3: (1, 3), 4: (1, 4), 5: (2, 3), 9: (3, 3), 16: (4, 4), 18: (5, 4)}


def test_the_chunks_that_cost_the_most_to_drop_are_kept() -> None:
    """Two chunks a row, whose squares are 4 and 9, and 16 and 1."""
    values = torch.tensor([[2.0, 0, 0, 0, 0, 3, 0, 0], [0, 0, 0, 4, 1, 0, 0, 0]])
    rows, columns = torch.tensor([1, 0.2]).double(), torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 1])
    for weights, matters, wanted in (
        (None, None, [[0, 1], [1, 0]]),
        (rows, None, [[1, 1], [0, 0]]),
        (None, columns, [[1, 0], [1, 0]]),
    ):
        kind = Halves(2, 2)
        state = kind.fill(Columns(values, weights), matters)
        assert kind.alive(state, 8).int().tolist() == wanted
        assert torch.equal(kind.read(state, 8), values * spread(kind.alive(state, 8), 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "width"), [(1000, 10), (65, 16), (300, 3), (7, 150)])
def test_chunks_are_read_where_they_were_put(kind: Any, rows: int, width: int) -> None:
    """Over several blocks of bits, with full and with empty ones."""
    values, alive = numbers(rows, width), numbers(rows, chunks_of(width), seed=1) > 0
    alive[rows // 4 : rows // 2], alive[rows // 2 : 2 * rows // 3] = False, True
    made = kind(rows, int(alive.sum()))
    state = made.filled(values, alive)
    assert torch.equal(made.alive(state, width), alive)
    wanted = values.half().float()
    if kind is Bytes:
        scale = (values.abs() * spread(alive, width)).amax(0).div(127).bfloat16().float()
        wanted = (values / scale).round().clamp(-127, 127) * scale
    wanted = wanted * spread(alive, width)
    ids = torch.randint(rows, (99,), generator=torch.manual_seed(2))
    assert torch.equal(made.read(state, width), wanted)
    assert torch.equal(made.read(state, width, ids), wanted[ids])
    assert torch.equal(made.rounded(values, state), wanted)
    assert torch.equal(made.rounded(values[ids], state, ids), wanted[ids])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_told_by_its_description_and_its_bytes_by_its_shapes(kind: Any) -> None:
    made = kind(1000, 77)
    assert of(made.described) == made
    sizes = {name: t.nbytes for name, t in made.empty(1000, 10).items()}
    each = 2 if kind is Halves else 1
    grid = {} if kind is Halves else {"grid": 20}
    assert sizes == {"stored": 77 * 4 * each, "blocks": 12 * 36, **grid}
    assert made.reads(1000, 10).stored_bytes == sizes["stored"] + sizes["blocks"]


def test_what_fp16_does_not_hold_is_refused_where_it_lives() -> None:
    values = torch.tensor([[1e6, 1.0], [2.0, 1.0]])
    with pytest.raises(CannotStore, match="chunked_float16"):
        Halves(2, 1).fill(Columns(values), None)
    kind = Halves(2, 1)
    state = kind.filled(values, torch.tensor([[False], [True]]))
    assert kind.read(state, 2).tolist() == [[0, 0], [2, 1]]
    assert kind.rounded(values, state).tolist() == [[0, 0], [2, 1]]


def test_the_cubic_schedule_and_the_cosine() -> None:
    first, last = 0.2, 0.9  # shares of zeros
    found = [cubic(done, first, last) for done in (0, 0.5, 1)]
    assert found == pytest.approx([first, last + (first - last) / 8, last])
    assert [replaced(done, 0.5) for done in (0, 0.5, 1)] == pytest.approx([0.5, 0.25, 0])


def at(step: int, steps: int = STEPS) -> Progress:
    return Progress("final", step, steps, steps, seed=0)


@pytest.mark.parametrize(
    ("schedule", "steps", "wanted"),
    [
        (Schedule(4, 0.0, 0.5), 40, {4: 0.25, 9: 0.5, 14: 0.75, 19: 1.0}),
        (Schedule(2, 0.25, 0.75), 40, {19: 0.5, 29: 1.0}),
        (Schedule(3, 0.0, 0.5), 22, {2: 1 / 3, 5: 2 / 3, 8: 1.0}),
        (Schedule(9, 0.0, 0.5), 4, {0: 0.5, 1: 1.0}),  # it has fewer steps
        (Schedule(9, 0.0, 0.5), 1, {0: 1.0}),
    ],
)
def test_moves_are_spread_over_their_part_of_a_run(
    schedule: Schedule, steps: int, wanted: dict[int, float]
) -> None:
    due = {step: schedule.due(at(step, steps)) for step in range(steps)}
    found = {step: done for step, done in due.items() if done is not None}
    assert found == pytest.approx(wanted)


def rows_of(made: type[SparseRows], kind: Any, live: int, values: Tensor, **more: Any) -> Any:
    """Thawed rows, with the whole table known."""
    rows = made(*values.shape, kind(len(values), live), Schedule(5, 0.0, 0.5), **more)
    with keeping_unrounded():
        rows.fill(values)
    rows.thaw()
    return rows.train()


def train(rows: Any, steps: int = STEPS, optimizer: Any = LazyAdam, check: Any = None) -> None:
    """Rows are pulled to where others are, a few of them in each step."""
    assert rows.master is not None
    lazy = optimizer([rows.master], lr=0.1)
    wanted = 3 * numbers(rows.rows, rows.width, seed=5)
    for step in range(steps):
        rows.before_step(at(step, steps))
        ids = torch.randint(rows.rows, (8,), generator=torch.manual_seed(step))
        lazy.zero_grad()
        (rows.gather(ids) - wanted[ids]).square().sum().backward()
        lazy.step()
        begin_anew([lazy], rows.after_step(at(step, steps)))
        if check is not None:
            check(step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [LazyAdam, RowwiseAdagrad])
def test_gradual_pruning_ends_with_the_served_number_and_keeps_it(
    kind: Any, optimizer: Any
) -> None:
    live, chunks = 27, ROWS * 3
    rows = rows_of(GraduallyPruned, kind, live, numbers(ROWS, WIDTH))
    assert rows.settled and int(rows.alive.sum()) == live  # no run began
    alive = [torch.ones(ROWS, 3, dtype=torch.bool)]

    def check(step: int) -> None:
        done = min((step + 1) // 4 / 5, 1)  # 5 moves in 20 steps
        wanted = round(live + (chunks - live) * (1 - done) ** 3)
        assert int(rows.alive.sum()) == wanted
        assert rows.settled == (step >= 19)
        assert not (rows.alive & ~alive[-1]).any()  # what died stays dead
        alive.append(rows.alive)
        assert not rows.master[~spread(rows.alive, WIDTH)].any()
        assert not rows.to_float()[~spread(rows.alive, WIDTH)].any()

    train(rows, optimizer=optimizer, check=check)
    served = rows.to_float().detach()
    rows.eval().freeze()
    assert torch.equal(rows.to_float(), served) and len(rows.stored) == live
    kept = cut(served).any(2)
    assert int(kept.sum()) == live and torch.equal(kept, rows.alive)


def test_those_die_first_that_it_costs_the_least_to_drop() -> None:
    values = torch.arange(1.0, 9).repeat_interleave(4).view(4, 8)  # chunks of 1, 2, ... 8
    rows = GraduallyPruned(4, 8, Halves(4, 2), Schedule(2, 0.0, 1.0))
    with keeping_unrounded():
        rows.fill(values, torch.tensor([100.0, 1, 1, 1]))
    rows.thaw()
    rows.before_step(at(0, 2))
    assert rows.alive.all()
    rows.after_step(at(0, 2))  # round(2 + 6 / 8) are left: 100 x 2^2, 100 x 1^2 and 1 x 8^2
    assert rows.alive.int().tolist() == [[1, 1], [0, 0], [0, 0], [0, 1]]
    rows.after_step(at(1, 2))
    assert rows.alive.int().tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_a_run_that_ends_early_is_served_with_the_number_that_was_planned() -> None:
    rows = rows_of(GraduallyPruned, Halves, 27, numbers(ROWS, WIDTH))
    rows.before_step(at(0))
    assert not rows.settled
    rows.freeze()
    assert len(rows.stored) == 27 and int(rows.alive.sum()) == 27
    rows.thaw()
    rows.before_step(at(0))  # of another run: the mask stays
    assert int(rows.alive.sum()) == 27


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_chunks_live_at_every_step_of_dynamic_sparse(kind: Any) -> None:
    live, moved = 27, []
    rows = rows_of(DynamicallySparse, kind, live, numbers(ROWS, WIDTH), fraction=0.5)
    before = rows.alive

    def check(step: int) -> None:
        nonlocal before
        changed, before = int((before != rows.alive).sum()), rows.alive
        assert int(rows.alive.sum()) == live and rows.settled
        assert not rows.master[~spread(rows.alive, WIDTH)].any()
        if (step + 1) % 4 or step >= 20:
            assert not changed
        else:
            moved.append(changed)

    train(rows, check=check)
    assert moved == [2 * int(replaced(done / 5, 0.5) * live) for done in (1, 2, 3, 4, 5)]
    assert moved[0] and not moved[-1]
    served = rows.to_float().detach()
    rows.eval().freeze()
    assert torch.equal(rows.to_float(), served) and len(rows.stored) == live
    assert rows.wanted is rows.row_weights is None


def test_a_grid_reaches_as_far_as_numbers_do_after_an_epoch() -> None:
    rows = rows_of(DynamicallySparse, Bytes, 27, numbers(ROWS, WIDTH), fraction=0.5)
    with torch.no_grad():
        rows.master.mul_(100)
    far = rows.master.abs().max()
    assert rows.to_float().abs().max() < far / 50
    rows.after_epoch(at(STEPS))
    torch.testing.assert_close(rows.to_float().abs().max(), far, rtol=1e-2, atol=0.0)


def test_a_fraction_of_zero_never_changes_the_mask() -> None:
    rows = rows_of(DynamicallySparse, Halves, 27, numbers(ROWS, WIDTH), fraction=0.0)
    before = rows.alive
    train(rows)
    assert torch.equal(rows.alive, before)


def test_ties_leave_the_number_as_it_is() -> None:
    rows = rows_of(DynamicallySparse, Halves, 27, torch.zeros(ROWS, WIDTH), fraction=0.5)
    rows.wanted.fill_(1.0)
    rows.after_step(at(3))
    assert int(rows.alive.sum()) == 27
    kept = rows_of(GraduallyPruned, Halves, 27, torch.zeros(ROWS, WIDTH))
    train(kept, steps=20, check=lambda step: None)
    assert int(kept.alive.sum()) == 27


def test_chunks_grow_where_gradients_ask_for_it_and_begin_at_zero() -> None:
    """One column a chunk. Of the live rows 0 and 1 the first is lighter, and among the others the
    third has 4 and -4, the second 5 and none, and in the last one 7 and -7 meet in each step."""
    rows = DynamicallySparse(5, 1, Halves(5, 2), Schedule(2, 0.0, 1.0), fraction=1.0)
    rows.fill(torch.tensor([[1.0], [2], [0], [0], [0]]))
    rows.thaw()
    ids = torch.tensor([0, 1, 2, 3, 3, 4, 4])
    for step, (second, third) in enumerate(((5.0, 2.0), (0.0, -2.0))):
        rows.master.grad = None
        slopes = torch.tensor([9.0, 9, second, third, third, 7, -7])
        (rows.gather(ids)[:, 0] * slopes).sum().backward()
        with torch.no_grad():
            rows.master.sub_(0.01 * rows.master.grad.to_dense())
        moved = rows.after_step(at(step, 4))
        assert bool(moved) == (step == 1)  # the first of two moves: a half of the live ones
    assert rows.alive.int().flatten().tolist() == [0, 1, 0, 1, 0]
    assert moved[0].numbers.int().flatten().tolist() == [1, 0, 0, 1, 0]
    assert rows.master.flatten().tolist() == pytest.approx([0, 1.82, 0, 0, 0])
    assert not rows.wanted.any()


def test_moments_of_moved_numbers_alone_are_forgotten() -> None:
    table = nn.Parameter(torch.ones(3, 2))
    lazy, adagrad = LazyAdam([table]), RowwiseAdagrad([table])
    for optimizer in (lazy, adagrad):
        nn.functional.embedding(torch.tensor([0, 1, 2]), table, sparse=True).sum().backward()
        optimizer.step()
        table.grad = None
    moved = torch.tensor([[True, False], [False, False], [False, True]])
    begin_anew([lazy, adagrad], [Moved(table, numbers=moved)])
    for name in ("mean", "square"):
        assert torch.equal(lazy.state[table][name] == 0, moved)
    assert lazy.state[table]["last"].eq(1).all() and adagrad.state[table]["sum"].all()


GRADIENT = torch.linspace(1, 4, WIDTH)  # its diagonal


def layer_of(drawn: bool) -> Layer:
    spec = TableSpec(name="t", rows=ROWS, dim=WIDTH, pooling="sum", counted=True)
    counts = torch.arange(ROWS, 0, -1).double()
    return Layer(
        spec,
        numbers(ROWS, WIDTH),
        None,
        TableStatistics(counts, GRADIENT.diag().double()),
        drawn=drawn,
    )


def test_a_drawn_table_begins_with_chunks_anywhere_and_a_known_one_with_those_that_count() -> None:
    method = get("dynamic_sparse")
    settings = method.Settings(density=0.3, dropped="zero")
    made = [method.compress(layer_of(drawn), settings) for drawn in (False, True)]
    known, drawn = (served.stored for served in made)
    assert int(known.alive.sum()) == int(drawn.alive.sum()) == 27
    cost = cut(numbers(ROWS, WIDTH).square() * GRADIENT).sum(2) * torch.arange(ROWS, 0, -1)[:, None]
    assert cost[known.alive].min() > cost[~known.alive].max()
    assert cost[drawn.alive].min() < cost[~drawn.alive].max()
    assert torch.equal(drawn.to_float(), (numbers(ROWS, WIDTH) * spread(drawn.alive, WIDTH)).half())


def test_what_is_dropped_is_the_mean_row() -> None:
    method, layer = get("gradual_pruning"), layer_of(False)
    served = method.compress(layer, method.Settings(density=0.1))
    mean = (layer.weight * layer.counts[:, None]).sum(0) / layer.counts.sum()
    dead = ~spread(served.stored.alive, WIDTH)
    wanted = mean.half().float().expand(ROWS, -1)
    torch.testing.assert_close(served.to_float()[dead], wanted[dead], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(served.to_float()[~dead], layer.weight[~dead], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("dropped", ["mean", "zero"])
def test_codes_of_full_rank_with_all_chunks_are_the_table(dropped: str) -> None:
    method, layer = get("dynamic_sparse"), layer_of(False)
    served = method.compress(layer, method.Settings(density=1.0, rank=WIDTH, dropped=dropped))
    torch.testing.assert_close(served.to_float(), layer.weight, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize(
    "settings", [{"density": 1e-9}, {"density": 1.1}, {"density": 1, "rank": 11}]
)
def test_what_a_table_cannot_have_is_refused(settings: dict[str, Any]) -> None:
    method = get("gradual_pruning")
    with pytest.raises(BadSettings, match=r"has 90 chunks|has ranks from 1 to 10"):
        method.empty(layer_of(False).spec, method.Settings(**settings))
