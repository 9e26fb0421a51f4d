"""The planner's programme against an integer-programming solver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from embedcomp.compress.choices import Choice
from embedcomp.compress.knapsack import solve, total_bytes, total_loss


def instance(seed: int) -> dict[str, list[Choice]]:
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}": [
            Choice(method="m", settings=None, bytes=int(b), loss=float(x))
            for b, x in zip(rng.integers(1, 2000, 12), rng.lognormal(0, 2, 12) / 12, strict=True)
        ]
        for i in range(8)
    }


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_plan_is_that_of_an_integer_programme(seed: int, share: float) -> None:
    options = instance(seed)
    limit = int(share * sum(max(c.bytes for c in found) for found in options.values()))
    flat = [choice for found in options.values() for choice in found]
    one_each = np.kron(np.eye(len(options)), np.ones(12))
    sizes = np.array([choice.bytes for choice in flat])
    peer = milp(
        [choice.loss for choice in flat],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes, 0, limit)],
        options={"mip_rel_gap": 0.0},
    )
    found = solve(options, limit)
    if not peer.success:
        assert found is None
        return
    assert found is not None and total_bytes(found) <= limit
    assert total_loss(found) == pytest.approx(peer.fun, rel=1e-6)
