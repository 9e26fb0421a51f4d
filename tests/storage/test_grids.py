"""Grids that are trained: their gradients, how far they move, and what is stored of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedcomp.kernels import native
from embedcomp.storage.kind import CannotStore
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.names import STORAGES, AnyStorage
from embedcomp.storage.rounding import LEAST, fake_quantised, moved_columns
from embedcomp.storage.rows import GRID_RATE, StoredRows
from embedcomp.storage.training import Progress

ROWS, WIDTH = 90, 6
WITH_GRIDS: tuple[AnyStorage, ...] = (
    *(storage for storage in STORAGES if storage.startswith("column")),
    "product3x4",
    "product6x8",
    "clustered3",
    "sparse2x16",
    Tiered((30, 60, ROWS), (4, 2, 0)),
    Trellis((30, 60, ROWS), (17, 9, 0)),
)
AT = Progress("final", 3, 12, 3, 0)
needs_engine = pytest.mark.skipif(native.library() is None, reason="the engine was not built")


def filled(storage: AnyStorage, rows: int = ROWS) -> StoredRows:
    stored = StoredRows(rows, WIDTH, storage)
    values = torch.randn(rows, WIDTH, generator=torch.manual_seed(3)) * torch.rand(WIDTH)
    stored.fill(values, column_weights=torch.rand(WIDTH))
    return stored


def thawed(storage: AnyStorage) -> tuple[StoredRows, torch.nn.Parameter, torch.nn.Parameter]:
    stored = filled(storage)
    stored.thaw()
    assert stored.master is not None and stored.moves is not None
    return stored, stored.master, stored.moves


def test_gradients_are_those_of_lsq_by_hand() -> None:
    """Steps of 0.5 from -1 to 0.5, so u = -0.6, 1.6, 2.4 and 3.8 of 3."""
    values = torch.tensor([[-1.3], [-0.2], [0.2], [0.9]], requires_grad=True)
    scale, offset = (torch.tensor([number], requires_grad=True) for number in (0.5, -1.0))
    read = fake_quantised(values, scale, offset, torch.tensor([3.0]))
    assert torch.equal(read, torch.tensor([[-1.0], [0.0], [0.0], [0.5]]))
    read.backward(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert values.grad is not None and scale.grad is not None and offset.grad is not None
    assert values.grad[:, 0].tolist() == [0, 2, 3, 0]
    assert offset.grad.item() == 1 + 4
    assert scale.grad.item() == pytest.approx(1 * 0 + 2 * (2 - 1.6) + 3 * (2 - 2.4) + 4 * 3)


def test_on_a_grid_that_stays_all_values_pass_their_gradient_on() -> None:
    values = torch.tensor([[-1.3], [-0.2], [0.9]], requires_grad=True)
    read = fake_quantised(values, torch.tensor([0.5]), torch.tensor([-1.0]), torch.tensor([3.0]))
    read.backward(torch.tensor([[1.0], [2.0], [4.0]]))
    assert values.grad is not None and values.grad[:, 0].tolist() == [1, 2, 4]


def test_gradients_of_scales_are_finite_differences_where_roundings_are_held() -> None:
    torch.manual_seed(0)
    values, weights = torch.randn(50, 3).double(), torch.randn(50, 3).double()
    scale, offset = (
        torch.tensor([0.4, 0.3, 1.0]).double(),
        torch.tensor([-1.0, -0.4, -2.0]).double(),
    )
    levels = torch.tensor([3.0, 7.0, 1.0]).double()
    clamped = ((values - offset) / scale).clamp(min=torch.zeros(3).double(), max=levels)
    held = clamped.round() - clamped

    def straight(scale: Tensor, offset: Tensor) -> Tensor:
        u = ((values - offset) / scale).clamp(min=torch.zeros(3).double(), max=levels)
        return ((u + held) * scale + offset).mul(weights).sum(0)

    scale.requires_grad_(), offset.requires_grad_()
    (fake_quantised(values, scale, offset, levels) * weights).sum().backward()
    step = 1e-6
    by_scale = (straight(scale + step, offset) - straight(scale - step, offset)) / (2 * step)
    by_offset = (straight(scale, offset + step) - straight(scale, offset - step)) / (2 * step)
    torch.testing.assert_close(scale.grad, by_scale.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(offset.grad, by_offset.detach(), atol=1e-6, rtol=1e-6)


def test_data_on_a_grid_has_no_reason_to_leave_it() -> None:
    scale, offset = torch.tensor([0.25, 2.0]), torch.tensor([-0.5, 1.0])
    codes = torch.tensor([[0.0, 3.0], [1.0, 2.0], [3.0, 0.0]])
    leaves = [t.requires_grad_() for t in (codes * scale + offset, scale, offset)]
    read = fake_quantised(*leaves, torch.tensor(3.0))
    (read - leaves[0].detach()).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.eq(0).all() for leaf in leaves)


def test_a_constant_column_gives_no_gradient_that_is_no_number() -> None:
    values = torch.tensor([[1.0], [1.5]], requires_grad=True)
    scale, offset = (torch.tensor([number], requires_grad=True) for number in (1e-38, 1.0))
    fake_quantised(values, scale, offset, torch.tensor([3.0])).sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (values, scale, offset))


def test_columns_move_in_units_of_their_scales_and_keep_their_bits() -> None:
    grid = torch.tensor([[2.0, 0.5, 1.0], [-1.0, 0.25, 8.0], [3.0, -2.0, 0.0]]).bfloat16()
    by = torch.tensor([[0.5, -1.0, 0.0], [1.0, -1.0, 1.0], [7.0, 7.0, 7.0]], requires_grad=True)
    moved = moved_columns(grid, by)
    coded = (2.0 + 0.5) / 2  # the unit of a column without bits
    wanted = [[3.0, LEAST * 0.5, 1.0], [1.0, -0.25, 8.0 + coded], [3.0, -2.0, 0.0]]
    assert torch.equal(moved, torch.tensor(wanted))
    moved.sum().backward()
    assert by.grad is not None
    assert by.grad.tolist() == [[2.0, 0.5, coded], [2.0, 0.5, coded], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("storage", WITH_GRIDS, ids=str)
def test_thawing_a_grid_changes_nothing_that_is_read(storage: AnyStorage) -> None:
    stored = filled(storage)
    stored.thaw(grid=False)
    assert stored.moves is None and not stored.groups()
    fixed = stored.to_float().detach()
    stored.freeze()
    stored.thaw()
    assert torch.allclose(stored.to_float(), fixed, atol=1e-6)
    (group,) = stored.groups()
    assert group.parameters == (stored.moves,)
    assert (group.kind, group.rate, group.l2) == ("dense", GRID_RATE, 0)


@pytest.mark.parametrize("storage", ["float16", "row_int4", "symmetric_int8"])
def test_what_has_no_grid_trains_none(storage: AnyStorage) -> None:
    stored = filled(storage)
    stored.thaw()
    assert stored.moves is None and not stored.groups()


@pytest.mark.parametrize("storage", WITH_GRIDS, ids=str)
def test_what_is_stored_is_what_was_read_through_the_trained_grid(storage: AnyStorage) -> None:
    untrained = filled(storage).state_dict()
    stored, master, moves = thawed(storage)
    optimizer = torch.optim.Adam([moves], lr=0.05)
    ids, target = torch.arange(0, ROWS, 3), torch.randn(ROWS // 3, WIDTH)
    start = stored.to_float().detach()
    for _ in range(5):
        optimizer.zero_grad()
        (stored.gather(ids) - target).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            assert master.grad is not None and master.grad.is_sparse
            master -= 0.01 * master.grad.to_dense()
            master.grad = None
    stored.eval()
    read, whole = stored.gather(ids).detach(), stored.to_float().detach()
    grid = stored.state["grid"].detach()
    stored.freeze()
    assert stored.grid is not None and torch.equal(stored.grid.float(), grid)
    assert torch.equal(stored.gather(ids), read) and torch.equal(stored.to_float(), whole)
    assert not torch.equal(whole, start) and not torch.equal(stored.grid, untrained["grid"])
    shapes = [
        {n: (t.shape, t.dtype) for n, t in s.items()} for s in (untrained, stored.state_dict())
    ]
    assert shapes[0] == shapes[1]


def test_a_codeword_gets_the_gradient_of_all_rows_that_read_it() -> None:
    stored, master, moves = thawed("product1x4")
    assert stored.grid is not None
    unit = stored.grid[:-1].float().square().mean(0).sqrt()  # [width]
    ids = torch.tensor([4, 4, 8, 15])
    gradients = torch.randn(4, WIDTH)
    stored.gather(ids).backward(gradients)
    words = stored.grid[:-1].float()
    wanted = torch.zeros_like(words)
    for row, gradient in zip(ids.tolist(), gradients, strict=True):
        word = int((words - stored.to_float()[row]).square().sum(1).argmin())
        wanted[word] += gradient * unit
    assert moves.grad is not None and master.grad is not None
    torch.testing.assert_close(moves.grad[:-1], wanted)
    assert moves.grad[-1].eq(0).all()  # what errors of columns cost is no number of a row
    torch.testing.assert_close(master.grad.to_dense()[4], gradients[:2].sum(0))


def test_clustered_words_stay_in_order_however_they_move() -> None:
    stored, _, moves = thawed("clustered3")
    with torch.no_grad():
        moves += torch.linspace(3, -3, 8)
    read = stored.to_float().detach()
    stored.freeze()
    assert stored.grid is not None and stored.grid.diff().ge(0).all()
    assert torch.equal(stored.to_float(), read)


def test_a_grid_that_its_type_cannot_hold_is_refused() -> None:
    stored, _, moves = thawed("clustered3")
    with torch.no_grad():
        moves += 1e9
    with pytest.raises(CannotStore, match="do not fit clustered3"):
        stored.freeze()
    assert stored.thawed


@needs_engine
def test_gradients_of_a_trellis_are_finite_differences_where_codes_are_held() -> None:
    stored, master, moves = thawed(Trellis((40, ROWS), (20, 9)))
    weights = torch.randn(ROWS, WIDTH)
    (stored.to_float() * weights).sum().backward()
    assert stored.grid is not None and moves.grad is not None and master.grad is not None
    assert torch.equal(master.grad, weights)
    scale, offset, bits = stored.grid.float().unbind(1)

    def read(scale: Tensor, offset: Tensor) -> Tensor:
        state = {**stored.state, "grid": torch.stack([scale, offset, bits], 1)}
        parts = (stored.kind.read(state, WIDTH) * weights).split([40, ROWS - 40])
        return torch.stack([part.sum(0) for part in parts])

    for number, step in enumerate((torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))):
        ends = [read(scale + s * step[0], offset + s * step[1]) for s in (0.5, -0.5)]
        unit = scale.where(bits != 0, scale[bits != 0].mean())
        wanted = (ends[0] - ends[1]) * unit
        torch.testing.assert_close(moves.grad[:, number], wanted.detach(), atol=1e-3, rtol=1e-4)
    assert moves.grad[:, 2].eq(0).all()


@needs_engine
def test_codes_found_anew_cost_no_more_than_the_old_path() -> None:
    """By squared errors times what those of a column matter, on the grid as it was trained."""
    matters = torch.tensor([4.0, 1.0, 0.5, 2.0, 1.0, 0.25])
    stored = StoredRows(ROWS, WIDTH, Trellis((ROWS,), (12,)))
    stored.fill(torch.randn(ROWS, WIDTH, generator=torch.manual_seed(3)), column_weights=matters)
    stored.thaw()
    stored.train()
    assert stored.master is not None and stored.moves is not None

    def cost() -> float:
        assert stored.master is not None
        read = stored.kind.read(stored.state, WIDTH)
        return float(((read - stored.master).square() * matters).sum())

    for seed in range(5):
        torch.manual_seed(seed)
        with torch.no_grad():
            stored.master += 0.3 * torch.randn(ROWS, WIDTH)
            stored.moves += 0.05 * torch.randn(stored.moves.shape)
        before = cost()
        assert stored.after_epoch(AT) == []
        assert cost() < before
        found, values = stored.stored, stored.master.detach()
        with torch.no_grad():
            with_costs, without = (
                stored.kind.refill(values, stored.state, weights)["stored"]
                for weights in (matters, None)
            )
        assert torch.equal(found, with_costs) and not torch.equal(found, without)


def test_rows_coded_by_themselves_have_nothing_to_find_anew() -> None:
    stored, _, _ = thawed("column_mixed3")
    before = {name: t.clone() for name, t in stored.state_dict().items()}
    assert stored.after_epoch(AT) == [] and stored.stored is None
    assert all(torch.equal(t, before[name]) for name, t in stored.state_dict().items())


def test_what_training_needs_of_a_trellis_is_in_its_checkpoint_and_not_in_its_file() -> None:
    stored = filled(Trellis((ROWS,), (12,)))
    frozen = stored.state_dict().keys()
    stored.thaw()
    assert stored.state_dict().keys() - frozen == {"master", "moves", "reads", "matters"}
    matters = stored.matters
    stored.freeze()
    assert stored.state_dict().keys() == frozen
    stored.thaw()
    assert stored.matters is matters
