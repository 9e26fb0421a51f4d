from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcomp.storage.columns import Columns, fit_grid
from embedcomp.storage.kind import CannotStore
from embedcomp.storage.kinds import named
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.names import STORAGES
from embedcomp.storage.rows import StoredRows, keeping_unrounded
from embedcomp.storage.training import Progress

ROWS, WIDTHS = 40, (1, 3, 4, 7, 16)
CODES = ("product1x4", "product3x4", "product2x8", "clustered3", "clustered8", "sparse2x16")
ALL = (*STORAGES, *CODES)


def filled(storage, width=7, rows=ROWS, scale=1.0):
    stored = StoredRows(rows, width, storage)
    weight = torch.randn(rows, width, generator=torch.manual_seed(3)) * scale
    stored.fill(weight)
    return stored, weight


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_read_is_close_to_what_was_stored(storage, width):
    stored, weight = filled(storage, width)
    step = {
        "float32": 0,
        "float16": 4e-3,
        "8": 0.05,
        "6": 0.2,
        "5": 0.4,
        "4": 0.8,
        "bfloat16": 3e-2,
        "3": 1.5,
        "2": 3,
    }
    bound = step[storage if storage in step else storage[-1]]
    assert (stored.to_float() - weight).abs().max() <= bound


@pytest.mark.parametrize("storage", ALL)
def test_gathered_rows_are_rows_of_the_whole_bit_for_bit(storage):
    stored, _ = filled(storage)
    ids = torch.tensor([5, 5, 0, 39])
    assert torch.equal(stored.gather(ids), stored.to_float()[ids])
    assert stored.gather(ids[:0]).shape == (0, 7)


@pytest.mark.parametrize(
    ("storage", "width", "expected"),
    [
        ("float32", 16, 64),
        ("float16", 16, 32),
        ("row_int8", 16, 20),
        ("row_int4", 16, 12),
        ("column_int8", 16, 16),
        ("column_int4", 16, 8),
        ("column_int4", 7, 4),
        ("column_mixed6", 16, 12),
        ("column_mixed3", 7, 3),
        ("column_mixed2", 1, 1),
        ("row_int4", 5, 8),
        ("row_int2", 16, 8),
        ("row_int2", 5, 6),
        ("bfloat16", 16, 32),
        ("symmetric_int8", 7, 9),
        ("product4x8", 16, 4),
        ("product4x8", 3, 3),
        ("product5x4", 16, 3),
        ("clustered4", 7, 4),
        ("clustered3", 7, 3),
        ("clustered2", 16, 4),
        ("sparse3x200", 16, 6),
    ],
)
def test_a_row_takes_the_bytes_it_is_said_to(storage, width, expected):
    assert StoredRows(10, width, storage).stored.nbytes == 10 * expected


@pytest.mark.parametrize("storage", ALL)
def test_freezing_changes_nothing_that_is_read(storage):
    stored, _ = filled(storage)
    stored.thaw()
    with torch.no_grad():
        stored.master += 0.1 * torch.randn_like(stored.master)
    ids = torch.tensor([1, 2, 1])
    thawed, whole = stored.gather(ids).detach(), stored.to_float().detach()
    stored.freeze()
    assert stored.master is None
    assert torch.equal(stored.gather(ids), thawed)
    assert torch.equal(stored.to_float(), whole)


@pytest.mark.parametrize("storage", [s for s in ALL if not s.startswith(("row", "sparse"))])
def test_thawing_changes_nothing_that_is_read(storage):
    stored, _ = filled(storage)
    before = stored.to_float()
    stored.thaw()
    assert torch.allclose(stored.to_float(), before, atol=1e-6)


@pytest.mark.parametrize("storage", ALL)
def test_gradients_pass_through_the_rounding(storage):
    stored, _ = filled(storage)
    stored.thaw()
    stored.gather(torch.tensor([1, 1, 4])).sum().backward()
    assert stored.master.grad.is_sparse
    gradient = stored.master.grad.to_dense()
    assert gradient[1].eq(2).all() and gradient[4].eq(1).all() and gradient[0].eq(0).all()


@pytest.mark.parametrize("storage", ["float16", "row_int8", "row_int4", *CODES])
@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_values_beyond_16_bit_floats_are_refused(storage, value):
    with pytest.raises(CannotStore, match="use float32 or a column_"):
        StoredRows(2, 4, storage).fill(torch.full((2, 4), value))


def test_large_values_fit_a_scale_per_column():
    stored, weight = filled("column_int8", scale=1e6)
    assert (stored.to_float() - weight).abs().max() < 3e4


def test_a_table_without_columns_is_stored():
    stored = StoredRows(5, 0, "float32")
    stored.fill(torch.empty(5, 0))
    assert stored.gather(torch.tensor([4, 1])).shape == (2, 0)


@pytest.mark.parametrize("storage", ["column_int8", "column_int4", "column_mixed3"])
def test_a_constant_column_is_kept(storage):
    """Exactly where its value is a bfloat16, and to as many digits as there are codes elsewhere."""
    values = torch.tensor([-7.0, 0.5, 0.3, 300.7]).expand(6, 4)
    stored = StoredRows(6, 4, storage)
    stored.fill(values)
    assert torch.equal(stored.to_float()[:, :2], values[:, :2])
    assert torch.allclose(stored.to_float(), values, rtol=3e-5)


@pytest.mark.parametrize("storage", ["column_int8", "column_mixed6"])
def test_a_column_far_from_zero_keeps_its_spread(storage):
    values = 300.7 + torch.linspace(-2, 2, 50)[:, None] * torch.tensor([1.0, 1e-3])
    stored = StoredRows(50, 2, storage)
    stored.fill(values)
    errors = (stored.to_float() - values).abs().amax(0)
    assert errors[0] < 0.08 and errors[1] < 0.04


def test_values_on_a_grid_are_found_exactly():
    weight = torch.arange(16.0)[:, None] * torch.tensor([0.25, 3.0]) - 1
    stored = StoredRows(16, 2, "column_int4")
    stored.fill(weight)
    assert torch.allclose(stored.to_float(), weight, atol=1e-5)


def test_rows_that_matter_more_are_stored_better():
    weight = torch.cat([torch.linspace(-0.1, 0.1, 30), torch.tensor([8.0, -9.0])])[:, None]
    heavy = torch.cat([torch.ones(30), torch.full((2,), 1e-6)])
    even, weighted = StoredRows(32, 1, "column_int4"), StoredRows(32, 1, "column_int4")
    even.fill(weight)
    weighted.fill(weight, heavy)
    head = slice(0, 30)
    error = [(s.to_float() - weight)[head].square().sum() for s in (even, weighted)]
    assert error[1] < 0.1 * error[0]


def test_a_grid_with_clipping_beats_the_plain_range_on_heavy_tails():
    values = torch.randn(3000, 1, generator=torch.manual_seed(0)) ** 3
    weights = torch.ones_like(values)
    low, high = values.min(), values.max()
    step = (high - low) / 15
    plain = ((values - low) / step).round() * step + low
    grid = fit_grid(values, weights, 15)
    fitted = ((values - grid[1]) / grid[0]).round().clamp(0, 15) * grid[0] + grid[1]
    assert (fitted - values).square().sum() < 0.6 * (plain - values).square().sum()


def test_many_rows_get_the_grid_of_their_histogram():
    weight = torch.randn(20_000, 3, generator=torch.manual_seed(1))
    many = StoredRows(20_000, 3, "column_int8")
    many.fill(weight)
    exact = fit_grid(weight, torch.ones_like(weight), 255)
    rounded = ((weight - exact[1]) / exact[0]).round().clamp(0, 255) * exact[0] + exact[1]
    error = (many.to_float() - weight).square().mean()
    assert error < 1.05 * (rounded - weight).square().mean()


def test_bits_go_to_the_columns_that_matter():
    weight = torch.randn(500, 4, generator=torch.manual_seed(2)) * torch.tensor(
        [8.0, 4.0, 2.0, 1.0]
    )
    stored = StoredRows(500, 4, "column_mixed4")
    stored.fill(weight)
    bits = stored.grid[2]
    assert bits.sum() == 16 and (bits.diff() <= 0).all() and bits[0] - bits[3] == 3
    stored.fill(weight, None, torch.tensor([1.0, 4.0, 16.0, 64.0]))
    assert stored.grid[2].tolist() == [4, 4, 4, 4]


def test_mixed_bits_beat_as_many_bits_for_all():
    weight = torch.randn(2000, 8, generator=torch.manual_seed(2)) * 2.0 ** -torch.arange(8)
    errors = []
    for storage in ("column_int4", "column_mixed4"):
        stored = StoredRows(2000, 8, storage)
        stored.fill(weight)
        errors.append(float((stored.to_float() - weight).square().sum()))
    assert stored.stored.nbytes == 2000 * 4
    assert errors[1] < 0.4 * errors[0]


@given(st.integers(2, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_mixed_codes_of_any_bits_are_read_as_they_were_written(bits, width, seed):
    generator = torch.manual_seed(seed)
    weight = torch.randn(30, width, generator=generator) * torch.rand(width) * 9
    form = named(f"column_mixed{bits}")
    grid = form.fit(Columns(weight), torch.rand(width))
    step, low, columns = grid
    assert columns.min() >= 1 and columns.sum() <= 8 * -(-width * bits // 8)
    codes = (torch.rand(30, width) * torch.exp2(columns)).floor()
    read = form.decode(form.encode(codes * step + low, grid), grid, width)
    assert torch.equal(read, codes * step + low)


@pytest.mark.parametrize("storage", ["row_int4", "column_mixed3", "clustered2"])
def test_thawing_goes_on_from_what_was_not_rounded_yet_where_it_was_kept(storage):
    with keeping_unrounded():
        stored, weight = filled(storage)
    before = stored.to_float()
    stored.thaw()
    assert torch.equal(stored.master, weight) and not torch.equal(before, weight)
    assert torch.equal(stored.to_float(), before)
    stored.freeze()
    assert torch.equal(stored.to_float(), before)


def at(step):
    return Progress("final", step, 10, 5, seed=0)


@pytest.mark.parametrize("storage", ["column_int8", "column_mixed3", "trellis", "product2x4"])
def test_what_begins_far_is_read_in_floats_until_its_grid_is_fitted(storage):
    kind = Trellis((20, ROWS), (9, 7)) if storage == "trellis" else storage
    with keeping_unrounded():
        stored, _ = filled(kind, 8, scale=0.01)
        fresh, large = filled(kind, 8)
    stored.thaw()
    stored.read_floats(0.5)
    with torch.no_grad():
        stored.master.copy_(large)
        stored.moves.fill_(0.1)
    for step in (0, 4):
        stored.before_step(at(step))
        assert torch.equal(stored.to_float(), large) and not stored.settled
    stored.before_step(at(5))
    assert stored.settled and not stored.moves.any()
    read = stored.eval().to_float()
    assert torch.equal(read, fresh.to_float()) and not torch.equal(read, large)
    with torch.no_grad():
        stored.moves.fill_(0.1)
    moved = stored.to_float()
    stored.before_step(at(6))
    assert torch.equal(stored.to_float(), moved)
    stored.freeze()
    assert torch.equal(stored.to_float(), moved) and not stored.begins_far


def test_rows_that_are_frozen_before_they_were_rounded_fit_their_grid():
    stored, _ = filled("column_int8", 8, scale=0.01)
    fresh, large = filled("column_int8", 8)
    stored.thaw()
    stored.read_floats(0.5)
    with torch.no_grad():
        stored.master.copy_(large)
    stored.freeze()
    assert torch.equal(stored.to_float(), fresh.to_float())
