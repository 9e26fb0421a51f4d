"""What `make test` leaves to the matrix is said of a case that it has."""

from __future__ import annotations

from itertools import combinations, product

from tests.covering import covering, in_pairs


def test_the_cases_that_say_most_are_taken_until_all_is_said() -> None:
    assert covering([{1, 2}, {3}, {1, 2, 3}, {4}, {3, 4}]) == {2, 3}
    assert covering([{1, 2, 3}, {1, 4}, {2, 4}, {4}]) == {0, 1}
    assert covering([]) == covering([set()]) == set()


def test_every_pair_of_values_is_tested_and_all_of_them_on_this_cpu() -> None:
    axes = {"kernels": range(3), "storage": ["a", "b", "c"], "width": [7, 16]}
    names, cases = in_pairs(**axes).args
    every = list(product(*axes.values()))
    assert names == list(axes) and [case.values for case in cases] == every
    kept = [case.values for case in cases if not case.marks]
    assert {one for one in kept if one[0] == 0} == {one for one in every if one[0] == 0}
    pairs = [
        {pair for one in some for pair in combinations(enumerate(one), 2)} for some in (kept, every)
    ]
    assert pairs[0] == pairs[1] and len(kept) == 6 + 2 * 3
