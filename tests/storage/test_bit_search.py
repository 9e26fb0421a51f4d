"""Bits of groups of rows that are searched for: mixtures, their price, and what is taken."""

from __future__ import annotations

import math

import pytest
import torch

from embedcomp.storage.bit_search import MOST, TEMPERATURE, BitOption, BitSearch
from embedcomp.storage.columns import Columns
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.training import Progress

ROWS, WIDTH, ENDS = 60, 4, (10, 60)


def searched(price: float = 0.0) -> BitSearch:
    found = BitSearch(ROWS, WIDTH, ENDS, price)
    found.fill(torch.randn(ROWS, WIDTH, generator=torch.manual_seed(2)))
    found.thaw()
    return found


def set_probabilities(found: BitSearch, by_group: list[dict[int, float]]) -> None:
    with torch.no_grad():
        found.logits.fill_(-1.0)
        for group, probabilities in enumerate(by_group):
            for bits, probability in probabilities.items():
                found.logits[group, bits] = TEMPERATURE * torch.tensor(probability).log()


def test_a_row_is_the_mixture_of_its_roundings() -> None:
    found = searched()
    set_probabilities(found, [{0: 0.25, 2: 0.75}, {3: 1.0}])
    assert found.master is not None
    rows, parts = found.master.detach(), []
    for part in Columns(rows).split([10, 50]):
        grids = [part.fitted(torch.full((WIDTH,), float(bits))).float() for bits in range(MOST + 1)]
        codes = [((part.values - g[1]) / g[0]).round().clamp_min(0) for g in grids]
        parts.append(
            [c.minimum(2 ** g[2] - 1) * g[0] + g[1] for c, g in zip(codes, grids, strict=True)]
        )
    wanted = torch.cat([0.25 * parts[0][0] + 0.75 * parts[0][2], parts[1][3]])
    torch.testing.assert_close(found.to_float(), wanted)
    ids = torch.tensor([3, 59, 3, 10])
    torch.testing.assert_close(found.gather(ids), wanted[ids])
    torch.testing.assert_close(parts[0][0], rows[:10].mean(0).expand(10, -1), atol=0.01, rtol=0.01)


def test_the_price_is_that_of_the_expected_bytes() -> None:
    """Rows of 4 numbers take 0, 1, 1, 2, 2, 3 and 3 bytes; 10 rows are in the first group."""
    found = searched(price=0.5)
    set_probabilities(found, [{1: 0.2, 6: 0.8}, {0: 0.9, 3: 0.1}])
    wanted = 0.5 * (10 * (0.2 * 1 + 0.8 * 3) + 50 * (0.1 * 2))
    assert found.penalty().item() == pytest.approx(wanted, rel=1e-5)
    options = found.options()
    assert len(options) == 2 * (MOST + 1) and not found.settled
    assert [o.bytes for o in options if o.group == 1] == [0, 50, 50, 100, 100, 150, 150]
    assert options[6] == BitOption(0, 6, 30, pytest.approx(-math.log(0.8), rel=1e-4))
    assert {g.kind for g in found.groups()} == {"dense"}


@pytest.mark.parametrize(("price", "bits"), [(0.0, MOST), (10.0, 0)])
def test_without_a_price_all_have_the_most_bits_and_at_a_high_one_none(
    price: float, bits: int
) -> None:
    found = searched(price)
    assert found.master is not None
    target, ids = found.master.detach().clone(), torch.arange(ROWS)
    optimizer = torch.optim.Adam([found.logits, found.grid_moves], lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (found.gather(ids) - target).square().mean()
        (loss + found.penalty()).backward()
        optimizer.step()
    assert found.probabilities.argmax(1).tolist() == [bits, bits]


def test_a_price_between_gives_bits_to_the_rows_that_are_looked_up() -> None:
    found = searched(price=2e-4)
    assert found.master is not None
    ids = torch.cat([torch.arange(10).repeat(40), torch.arange(10, ROWS)])
    target = found.master.detach()[ids]
    optimizer = torch.optim.Adam([found.logits], lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        ((found.gather(ids) - target).square().mean() + found.penalty()).backward()
        optimizer.step()
    first, second = found.probabilities.argmax(1).tolist()
    assert first > second


def test_what_is_taken_is_read_on_the_grids_that_were_trained() -> None:
    found = searched()
    with torch.no_grad():
        found.grid_moves += 0.1 * torch.randn(found.grid_moves.shape)
    set_probabilities(found, [{4: 1.0}, {1: 1.0}])
    stored, read = found.taken((4, 1)), found.to_float().detach()
    assert isinstance(stored, StoredRows) and not isinstance(stored, BitSearch)
    assert torch.equal(stored.to_float(), read)
    wanted = sum(o.bytes for o in found.options() if (o.group, o.bits) in ((0, 4), (1, 1)))
    assert stored.stored is not None and stored.stored.nbytes == wanted == 20 + 50
    stored.thaw()
    assert stored.master is not None and found.master is not None
    assert torch.equal(stored.master, found.master)
    assert torch.equal(stored.to_float(), read)


def test_bits_cost_nothing_while_rows_are_in_floats_and_grids_are_fitted_then() -> None:
    found = searched(price=0.5)
    found.read_floats(0.5)
    assert found.master is not None and found.penalty() is None
    with torch.no_grad():
        found.master.mul_(100)
    assert torch.equal(found.to_float(), found.master)
    before = found.grids.clone()
    found.before_step(Progress("search", 5, 10, 5, seed=0))
    assert found.penalty() is not None and not torch.equal(found.to_float(), found.master)
    torch.testing.assert_close(found.grids[:, 1:, 0], 100 * before[:, 1:, 0], rtol=0.02, atol=0.0)
