"""Rows that a batch looks up, each about once."""

from __future__ import annotations

import pytest
import torch

from embedcomp.train.rows import distinct, summed


@pytest.mark.parametrize("most", [3, 100, 10**12])
@pytest.mark.parametrize("number", [0, 1, 7, 500])
def test_distinct_rows_hold_every_look_up_where_it_says(number: int, most: int) -> None:
    drawn = torch.Generator().manual_seed(number)
    ids = torch.randint(most, (number,), generator=drawn)
    rows, places = distinct(ids)
    assert torch.equal(rows[places], ids)
    assert set(rows.tolist()) == set(ids.tolist())


def test_equal_look_ups_that_meet_no_other_are_one_row() -> None:
    rows, places = distinct(torch.tensor([5, 3, 5, 5, 1, 3]))
    assert sorted(rows.tolist()) == [1, 3, 5]
    assert rows[places].tolist() == [5, 3, 5, 5, 1, 3]


def test_what_meets_another_id_is_there_as_often_as_it_was_looked_up() -> None:
    """Of six look-ups there are 16 seats, so 2 and 18 have the same, which 18 has last."""
    rows, places = distinct(torch.tensor([2, 2, 7, 18, 2, 18]))
    assert rows[places].tolist() == [2, 2, 7, 18, 2, 18]
    assert sorted(rows.tolist()) == [2, 2, 2, 7, 18]


def test_few_rows_are_there_more_than_once() -> None:
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(30_000, (100_000,), generator=drawn) * 31
    assert len(distinct(ids)[0]) <= 1.1 * len(ids.unique())


def test_a_sparse_gradient_is_summed_row_by_row() -> None:
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(40, (200,), generator=drawn)
    values = torch.randn(200, 3, generator=drawn)
    gradient = torch.sparse_coo_tensor(ids[None], values, (50, 3))
    rows, sums = summed(gradient)
    found = torch.zeros(50, 3).index_add_(0, rows, sums)
    torch.testing.assert_close(found, gradient.to_dense())
    assert len(rows) < 60
