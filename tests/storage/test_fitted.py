"""What storages are fitted to, against the same found slowly."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from embedcomp.storage import columns as module
from embedcomp.storage.columns import (
    MOST_BITS,
    Columns,
    fit_grid,
    shared_out,
)
from embedcomp.storage.kinds.tiered import Tiered
from embedcomp.storage.kmeans import SAMPLED, seen, words_of
from embedcomp.storage.pursuit import (
    _refitted,
    dictionary_of,
    pursued,
    summed,
)
from embedcomp.storage.rows import StoredRows

ROWS, WIDTH = 3000, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def stored(storage: str, weight: Tensor, *weights: Tensor | None) -> StoredRows:
    made = StoredRows(*weight.shape, storage)
    made.fill(weight, *weights)
    return made


def test_errors_of_columns_are_foreseen_for_any_number_of_bits() -> None:
    """Also where many rows become a histogram, and few of them count."""
    weight = uniform(ROWS, 2) * 8 - 3
    counts = torch.where(torch.arange(ROWS) % 3 == 0, 5.0, 1e-3)
    weight[counts < 1] += 2
    found = Columns(weight, counts).errors()
    shares = (counts / counts.sum())[:, None]
    variance = (shares * (weight - (shares * weight).sum(0)).square()).sum(0)
    torch.testing.assert_close(found[0] / counts.sum(), variance, rtol=0.01, atol=0)
    for bits in range(1, MOST_BITS + 1):
        grid = fit_grid(weight, counts[:, None].expand(-1, 2), 2**bits - 1)
        rounded = ((weight - grid[1]) / grid[0]).round().clamp(0, 2**bits - 1) * grid[0] + grid[1]
        error = (shares * (rounded - weight).square()).sum(0)
        times = found[bits] / counts.sum() / error
        assert times.min() > 0.9 and times.max() < 1.5  # grids are refined once bits are chosen


def test_a_tier_without_bytes_is_the_mean_of_what_is_looked_up() -> None:
    weight = torch.linspace(-1, 1, 9001)[:, None]
    for counts, mean in ((None, 0.0), (torch.linspace(0, 1, 9001), 1 / 3)):
        made = StoredRows(9001, 1, Tiered((9001,), (0,)))
        made.fill(weight, counts)
        assert float(made.to_float()[0, 0]) == pytest.approx(mean, rel=4e-3, abs=1e-5)


def test_tiers_are_fitted_to_the_rows_and_columns_that_matter() -> None:
    weight, counts = normal(ROWS, WIDTH), torch.full((ROWS,), 1e-4)
    counts[:1000] = 1
    weight[:1000] *= 0.1 * torch.arange(1, WIDTH + 1)
    matters = torch.tensor([1e6, 1e4, 3e2, 1.0, 1.0, 0.1])
    even, weighted, by_column = (StoredRows(ROWS, WIDTH, Tiered((ROWS,), (2,))) for _ in range(3))
    even.fill(weight)
    weighted.fill(weight, counts)
    by_column.fill(weight, counts, matters)
    off = [(made.to_float() - weight)[:1000].square().mean(0) for made in (even, weighted)]
    assert off[1].sum() < 0.5 * off[0].sum()
    bits = [made.grid[0, 2].tolist() for made in (weighted, by_column)]
    assert bits[0] == sorted(bits[0])  # the rows that count spread most in the last column
    assert bits[1] == sorted(bits[1], reverse=True) and bits[1][0] > bits[1][2] > bits[1][5]


@pytest.mark.parametrize("rows", [ROWS, 3 * ROWS], ids=["rows", "histogram"])
def test_the_first_columns_are_fitted_as_they_are_by_themselves(rows: int) -> None:
    """Also in parts of the rows, whatever was asked of them before."""
    values, counts = normal(rows, WIDTH) ** 3, uniform(rows, seed=1) ** 4
    every, bits = Columns(values, counts), torch.tensor([5.0, 0.0, 2.0, 3.0])
    every.first(1).fitted(torch.ones(1))
    some, cut = every.first(4), rows - 900
    upper, lower = some.split((cut, 900))
    parts = (some, slice(None)), (upper, slice(0, cut)), (lower, slice(cut, rows))
    for found, part in parts:
        alone = Columns(values[part, :4], counts[part])
        torch.testing.assert_close(found.errors(), alone.errors())
        torch.testing.assert_close(found.fitted(bits), alone.fitted(bits))


def test_a_wide_matrix_is_fitted_some_columns_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values, weights = normal(50, 23) ** 3, uniform(50, 23, seed=1)
    levels = torch.arange(1, 24)
    whole = module.fit_grid(values, weights, levels)
    monkeypatch.setattr(module, "FITTED", 4 * len(values))
    some = module.fit_grid(values, weights, levels)  # whose sums are rounded otherwise
    torch.testing.assert_close(some, whole, rtol=1e-4, atol=0)


def test_no_other_bits_of_columns_leave_a_smaller_error() -> None:
    errors = uniform(MOST_BITS + 1, 3)
    errors = errors.double().sort(0, descending=True).values
    falls = errors.diff(dim=0).sort(0).values  # each bit brings less than the one before
    errors = torch.cat([errors[:1], errors[:1] + falls.cumsum(0)])
    for least, total in product((0, 1), (3, 7, 12, 20)):
        every = product(range(least, MOST_BITS + 1), repeat=3)
        best = min(
            sum(float(errors[b, c]) for c, b in enumerate(bits))
            for bits in every
            if sum(bits) <= total
        )
        found = shared_out(total, errors, least).long()
        assert found.sum() == total and found.min() >= least
        assert float(errors.gather(0, found[None]).sum()) == pytest.approx(best)


def test_a_bit_that_brings_nothing_is_taken_where_the_next_one_does() -> None:
    errors = torch.tensor([[10.0, 3.0]] + [[11.0, 1.0]] + [[1.0, 0.5]] + [[0.0, 0.0]] * 6)
    assert shared_out(1, errors, 0).tolist() == [0, 1]
    assert shared_out(2, errors, 0).tolist() == [2, 0]
    assert shared_out(3, errors, 0).tolist() == [2, 1]
    assert shared_out(4, errors, 0).tolist() == [3, 1]


@pytest.mark.parametrize("storage", ["product1x4", "product3x4"])
def test_every_row_has_the_codewords_that_cost_least(storage: str) -> None:
    weight, matters = normal(300, WIDTH), torch.tensor([16.0, 1.0, 4.0, 1.0, 1.0, 9.0])
    made = stored(storage, weight, None, matters)
    assert made.grid is not None
    words, found = made.grid[:-1].float(), made.to_float()
    groups = int(storage[7])
    for columns in torch.arange(WIDTH).chunk(groups):
        costs = (weight[:, None, columns] - words[None, :, columns]).square() * matters[columns]
        own = ((weight - found)[:, columns].square() * matters[columns]).sum(1)
        torch.testing.assert_close(own, costs.sum(2).amin(1), rtol=2e-2, atol=1e-5)


def test_a_symmetric_byte_is_off_by_half_a_step_at_most() -> None:
    weight = normal(ROWS, WIDTH)
    step = weight.abs().amax(1, keepdim=True) / 127
    off = (stored("symmetric_int8", weight).to_float() - weight).abs()
    assert (off <= step * (0.5 + 127 * 2**-11)).all()  # scales are 16-bit floats
    assert (off <= step * 0.51).float().mean() > 0.99


def test_codewords_are_the_means_of_the_rows_nearest_to_them() -> None:
    rows, weights = normal(ROWS, 4), uniform(ROWS, seed=1).double() ** 4
    words = words_of(rows, weights, 32).double()
    apart = torch.cdist(rows.double(), words).square()
    owner, before = apart.argmin(1), float(weights @ apart.amin(1))
    means = words.clone()
    for word in owner.unique():
        own = owner == word
        means[word] = (weights[own, None] * rows[own]).sum(0) / weights[own].sum()
    after = float(weights @ torch.cdist(rows.double(), means).square().amin(1))
    assert 0.985 * before < after <= before


def test_a_sample_weighs_as_much_as_all_the_rows() -> None:
    weights = uniform(2 * SAMPLED).double() ** 3
    values = torch.arange(2 * SAMPLED)[:, None].float()
    rows, sampled = seen(values, weights, SAMPLED)
    assert len(rows) <= SAMPLED
    assert float(sampled.sum()) == pytest.approx(float(weights.sum()), rel=0.02)
    mean = float(weights @ values[:, 0].double() / weights.sum())
    assert float(sampled @ rows[:, 0].double() / sampled.sum()) == pytest.approx(mean, rel=0.02)


def test_atoms_are_the_weighted_least_squares_of_their_coefficients() -> None:
    rows, atoms, weights = (
        normal(200, 5).double(),
        normal(10, 5, seed=1),
        uniform(200, seed=2).double(),
    )
    which, by = pursued(rows, atoms[:8], 2, rounded=False)  # nobody has the last two
    found = _refitted(rows, weights, atoms.double(), which, by)
    made_of = torch.zeros(200, 8).double().scatter_add_(1, which, by)
    root = weights.sqrt()[:, None]
    wanted = torch.linalg.lstsq(root * made_of, root * rows).solution
    torch.testing.assert_close(found[:8], wanted, rtol=1e-4, atol=1e-4)
    off = weights * (rows - summed(wanted, which, by)).square().sum(1)
    worst = off.argsort(descending=True)[:2]
    torch.testing.assert_close(found[8:], rows[worst])


def test_an_atom_is_as_long_as_its_largest_part_of_a_row() -> None:
    rows = normal(500, WIDTH)
    atoms = dictionary_of(rows, None, 16, 2)
    which, by = pursued(rows, atoms, 2, rounded=False)
    for atom in which.unique():
        assert float(by[which == atom].abs().max()) == pytest.approx(1, rel=1e-4)


def test_coefficients_make_up_for_the_rounding_of_those_after_them() -> None:
    """Atoms much alike, so that one can stand in for what rounding the other loses."""
    rows, atoms = 40 * normal(ROWS, 3), normal(6, 3, seed=1) * torch.logspace(0, 1.3, 6)[:, None]
    whole, by = pursued(rows, atoms, 2, rounded=True)
    same, exact = pursued(rows, atoms, 2, rounded=False)
    alike = (whole == same).all(1) & (exact.abs().amax(1) < 127)
    assert alike.sum() > 500
    off = [
        (summed(atoms.double(), whole, times) - rows).square().sum(1)[alike].sum()
        for times in (by, exact.round(), exact)
    ]
    assert off[0] - off[2] < 0.9 * (off[1] - off[2])
