from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from embedcomp.compress.choices import Choice, front
from embedcomp.compress.knapsack import solve, total_bytes, total_loss


def choice(size, loss):
    return Choice("keep", None, int(size), float(loss))


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_trying_everything(seed):
    rng = np.random.default_rng(seed)
    options = {
        str(layer): [choice(rng.integers(1, 1000), 10.0 ** rng.uniform(-9, 0)) for _ in range(5)]
        for layer in range(5)
    }
    everything = [dict(zip(options, picked, strict=True)) for picked in product(*options.values())]
    for limit in (700, 1500, 2500):
        fitting = [total_loss(p) for p in everything if total_bytes(p) <= limit]
        found = solve(options, limit)
        if not fitting:
            assert found is None
        else:
            assert total_bytes(found) <= limit
            assert total_loss(found) == pytest.approx(min(fitting), rel=1e-6)


def test_the_limit_is_kept_to_the_byte():
    options = {str(i): [choice(10**9, 1.0), choice(10**9 + 1, 0.0)] for i in range(5)}
    for extra in range(6):
        found = solve(options, 5 * 10**9 + extra)
        assert total_bytes(found) == 5 * 10**9 + extra


def test_nothing_fits():
    assert solve({"a": [choice(10, 0)], "b": [choice(5, 0)]}, 14) is None


def test_choices_that_another_one_beats_are_left_out():
    kept = front([choice(5, 3), choice(4, 3), choice(6, 1), choice(7, 2), choice(6, 1)])
    assert [(c.bytes, c.loss) for c in kept] == [(4, 3), (6, 1)]
