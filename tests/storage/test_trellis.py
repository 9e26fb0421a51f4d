"""Trellis-coded rows: what they leave of known distributions, and how they train."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcomp.errors import BadSettings
from embedcomp.kernels import native
from embedcomp.methods import trellis_coded
from embedcomp.sensitivity.layer import TableSpec
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kinds.trellis import Trellis
from embedcomp.storage.rows import StoredRows

ROWS, WIDTH = 3000, 6
needs_engine = pytest.mark.skipif(native.library() is None, reason="the engine was not built")


def filled(values: torch.Tensor, bits: int, **weights: torch.Tensor) -> StoredRows:
    rows, width = values.shape
    stored = StoredRows(rows, width, Trellis((rows,), (bits,)))
    stored.fill(values, **weights)
    return stored


def normal(rows: int = ROWS, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


def left(stored: StoredRows, values: torch.Tensor) -> float:
    return float((stored.to_float() - values).square().mean() / values.var())


@pytest.mark.parametrize(("bits", "most"), [(1, 0.29), (2, 0.081), (3, 0.022), (4, 0.0064)])
def test_it_comes_close_to_the_bound_of_rate_and_distortion(bits: int, most: float) -> None:
    values = 3 + 0.01 * normal()
    found = left(filled(values, WIDTH * bits), values)
    assert 4.0**-bits < found < most


@pytest.mark.parametrize("kind", ["laplacian", "uniform", "cauchy"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_no_distribution_is_stored_much_worse_than_in_even_steps(kind: str, bits: int) -> None:
    random = np.random.default_rng(0)
    drawn = {
        "laplacian": random.laplace,
        "uniform": random.uniform,
        "cauchy": random.standard_cauchy,
    }
    values = torch.from_numpy(drawn[kind](size=(ROWS, 8)).astype(np.float32))
    steps = StoredRows(ROWS, 8, Tiered((ROWS,), (bits,)))
    steps.fill(values)
    assert left(filled(values, 8 * bits), values) < 1.2 * left(steps, values)


def test_bits_go_where_errors_matter() -> None:
    values, matters = normal(), torch.tensor([1e4, 1e2, 2.0, 1.0, 1e-4, 0.0])
    stored = filled(values, 13, column_weights=matters)
    assert stored.grid is not None
    assert stored.grid[0, 2].abs().tolist() == sorted(stored.grid[0, 2].abs().tolist())[::-1]
    off = (stored.to_float() - values).square().mean(0)
    assert off[0] < off[1] < off[2] and off[5] > 0.9


@pytest.mark.parametrize("row_bits", [(7, 5, 0), (48, 13, 1)])
def test_every_row_is_read_by_itself(row_bits: tuple[int, ...]) -> None:
    values = normal(100)
    stored = StoredRows(100, WIDTH, Trellis((9, 50, 100), row_bits))
    stored.fill(values)
    whole = stored.to_float()
    ids = torch.tensor([99, 0, 9, 8, 50, 49, 0])
    assert torch.equal(stored.gather(ids), whole[ids])
    assert stored.stored is not None
    sizes = [9 * row_bits[0], 41 * row_bits[1], 50 * row_bits[2]]
    assert len(stored.stored) == 2 + sum(-(-size // 8) for size in sizes)


@needs_engine
def test_torch_finds_codes_as_good_as_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(600)
    found = [left(filled(values, 11), values)]
    monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    found.append(left(filled(values, 11), values))
    assert found[0] == pytest.approx(found[1], rel=1e-3)  # the engine sees 64 steps beyond a block


@needs_engine
def test_plans_leave_it_out_where_the_engine_was_not_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted, other = (
        TableSpec(name="t", rows=100, dim=4, pooling="sum", counted=counted)
        for counted in (True, False)
    )
    assert len(trellis_coded.candidates(counted)) > 10 and not trellis_coded.candidates(other)
    monkeypatch.setattr("embedcomp.kernels.native.library", lambda: None)
    assert not trellis_coded.candidates(other) and not caplog.messages
    assert not trellis_coded.candidates(counted)
    (told,) = caplog.messages
    assert told.startswith(
        "t: trellis_coded is left out: the compiled engine was not built; install"
    )


def test_what_is_stored_is_encoded_the_same_again() -> None:
    stored = filled(normal(), 17)
    before = stored.to_float()
    stored.thaw()
    stored.freeze()
    assert torch.equal(stored.to_float(), before)


def test_constant_columns_and_rows_that_nobody_looked_up() -> None:
    values = torch.tensor([1.5, 0.0, -2.0]).expand(50, 3).contiguous()
    assert torch.equal(filled(values, 9).to_float(), values)
    stored = filled(normal(50, 3), 9, row_weights=torch.zeros(50), column_weights=torch.zeros(3))
    assert torch.isfinite(stored.to_float()).all()


def test_training_reads_what_was_encoded_last_and_evaluation_what_will_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = filled(normal(100), 20)
    stored.thaw(grid=False)
    assert stored.master is not None
    before = stored.to_float().detach().clone()
    some = torch.arange(40)
    monkeypatch.setattr("embedcomp.storage.rows.LOOKED_UP", 40)
    stored.train()
    for times in range(3):
        with torch.no_grad():
            stored.master += 0.5
        assert torch.equal(stored.gather(some), before[:40]) == (times < 2)  # 120 of 100 rows
    stored.eval()
    with torch.no_grad():
        stored.master *= 2
    read = stored.to_float().detach().clone()
    assert not torch.equal(read, before)
    stored.freeze()
    assert stored.master is None and stored.reads is None
    assert torch.equal(stored.to_float(), read)


def test_gradients_reach_the_rows_that_were_looked_up() -> None:
    stored = filled(normal(100), 20)
    stored.thaw()
    assert stored.master is not None
    stored.gather(torch.tensor([3, 3, 7])).sum().backward()
    gradient = stored.master.grad.to_dense()
    assert gradient[3].eq(2).all() and gradient[7].eq(1).all()
    assert gradient.count_nonzero() == 2 * WIDTH


def test_rows_take_a_byte_a_column_at_most() -> None:
    with pytest.raises(BadSettings, match="take 16 bits at most, and not 17"):
        StoredRows(10, 2, Trellis((10,), (17,)))
