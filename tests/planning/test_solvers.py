"""Every solver against trying everything, and the baselines on spectra whose answer is known."""

from __future__ import annotations

import os
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embedcomp.errors import BadSettings, BudgetTooSmall
from embedcomp.methods import keep, low_rank
from embedcomp.modules.sizes import module_bytes
from embedcomp.planning import solvers
from embedcomp.planning.choices import (
    Choice,
    Menu,
    front,
    total_bytes,
    total_loss,
)
from embedcomp.planning.planner import plan
from embedcomp.planning.solvers import (
    exact,
    farms,
    greedy,
    highs,
    welore,
)
from embedcomp.sensitivity import spectra
from embedcomp.sensitivity.layer import Layer, LinearSpec, LinearStatistics
from tests import small

OPTIMAL = [exact, highs]
BY_SPECTRUM = [welore, farms]
KNOWN = {}  # about the layers, whichever solver plans


def choice(size, loss):
    return Choice("keep", None, int(size), float(loss))


def instance(seed, layers=5, choices=5):
    rng = np.random.default_rng(seed)
    return {
        str(layer): [
            choice(rng.integers(1, 1000), 10.0 ** rng.uniform(-9, 0)) for _ in range(choices)
        ]
        for layer in range(layers)
    }


def everything(options):
    return [dict(zip(options, picked, strict=True)) for picked in product(*options.values())]


def test_the_folder_is_the_registry():
    assert {"exact", "farms", "greedy", "highs", "welore"} <= set(solvers.names())
    assert solvers.get("exact") is exact
    every = ", ".join(solvers.names())
    with pytest.raises(BadSettings, match=rf"no solver 'best'; the solvers are: {every}"):
        solvers.get("best")


@pytest.mark.slow
@pytest.mark.parametrize("name", solvers.names())
def test_every_solver_keeps_to_the_budget_and_loses_no_more_with_a_larger_one(name):
    model, found, measured = small.measured()
    whole = module_bytes(model)

    def planned(budget):
        given = {"solver": name, "known": KNOWN}
        return plan(model, found, measured, budget, ["low_rank"], small.SINGLE, **given)

    tight, loose = planned(whole // 4), planned(whole // 2)
    assert tight.bytes_after <= whole // 4 and loose.bytes_after <= whole // 2
    assert tight.solver == name and {p.layer for p in tight.layers} == set(found.layers)
    assert loose.loss <= tight.loss
    with pytest.raises(BudgetTooSmall):
        planned(1)


@pytest.mark.parametrize("solver", OPTIMAL)
@pytest.mark.parametrize("seed", range(8))
def test_the_least_loss_is_that_of_trying_everything(solver, seed):
    options = instance(seed)
    for limit in (700, 1500, 2500):
        losses = [total_loss(p) for p in everything(options) if total_bytes(p) <= limit]
        found = solver.least_loss(options, limit)
        if not losses:
            assert found is None
        else:
            assert total_bytes(found) <= limit
            assert total_loss(found) == pytest.approx(min(losses), rel=1e-7)


@pytest.mark.parametrize("solver", OPTIMAL)
@pytest.mark.parametrize("seed", range(8))
def test_the_least_bytes_are_those_of_trying_everything(solver, seed):
    options = instance(seed)
    for limit in (1e-6, 1e-3, 1e-1):
        sizes = [total_bytes(p) for p in everything(options) if total_loss(p) <= limit]
        found = solver.least_bytes(options, limit)
        if not sizes:
            assert found is None
        else:
            assert total_loss(found) <= limit * (1 + 1e-8)
            assert total_bytes(found) == min(sizes)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_programme_and_highs_agree_where_there_is_too_much_to_try(seed, share):
    options = instance(seed, layers=40, choices=12)
    limit = int(share * sum(max(c.bytes for c in found) for found in options.values()))
    found, peer = exact.least_loss(options, limit), highs.least_loss(options, limit)
    assert total_bytes(found) <= limit and total_bytes(peer) <= limit
    assert total_loss(found) == pytest.approx(total_loss(peer), rel=1e-7)


@pytest.mark.parametrize("solver", OPTIMAL)
@pytest.mark.parametrize("seed", range(5))
def test_each_problem_is_the_others_dual(solver, seed):
    options = instance(seed, layers=20)
    best = solver.least_loss(options, 6000)
    smallest = solver.least_bytes(options, total_loss(best))
    assert total_bytes(smallest) <= total_bytes(best)
    assert total_loss(smallest) <= total_loss(best) * (1 + 1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_feasible_and_never_better_than_the_best(seed):
    options = instance(seed, layers=20)
    best, found = exact.least_loss(options, 5000), greedy.least_loss(options, 5000)
    assert total_bytes(found) <= 5000 and total_loss(found) >= total_loss(best) * (1 - 1e-9)
    fewest, found = exact.least_bytes(options, 1e-3), greedy.least_bytes(options, 1e-3)
    assert total_loss(found) <= 1e-3 * (1 + 1e-8) and total_bytes(found) >= total_bytes(fewest)


def test_greedy_is_the_best_where_its_last_step_ends_at_the_limit():
    options = {"a": [choice(1, 8), choice(3, 2), choice(9, 1)], "b": [choice(2, 5), choice(4, 3)]}
    found = greedy.least_loss(options, 7)
    assert (total_bytes(found), total_loss(found)) == (7, 5)


@pytest.mark.parametrize("solver", OPTIMAL)
def test_the_limit_is_kept_to_the_byte(solver):
    options = {str(i): [choice(10**9, 1.0), choice(10**9 + 1, 0.0)] for i in range(5)}
    for extra in range(6):
        found = solver.least_loss(options, 5 * 10**9 + extra)
        assert total_bytes(found) == 5 * 10**9 + extra


@pytest.mark.parametrize("solver", [*OPTIMAL, greedy])
def test_nothing_fits(solver):
    options = {"a": [choice(10, 1)], "b": [choice(5, 1)]}
    assert solver.least_loss(options, 14) is None
    assert solver.least_bytes(options, 1.9) is None
    assert total_bytes(solver.least_loss(options, 15)) == 15


@pytest.mark.parametrize("solver", [exact, highs, greedy])
def test_no_limit_and_no_layer_are_limits_too(solver):
    options = instance(0)
    smallest = sum(min(c.bytes for c in found) for found in options.values())
    assert total_bytes(solver.least_bytes(options, np.inf)) == smallest
    assert solver.least_loss({}, 0) == {}


def test_losses_of_nothing_need_a_choice_of_no_loss():
    options = {"a": [choice(9, 0), choice(1, 1e-12)], "b": [choice(5, 0), choice(4, 1e-15)]}
    for solver in (exact, highs, greedy):
        assert total_bytes(solver.least_bytes(options, 0.0)) == 14


def test_choices_that_another_one_beats_are_left_out():
    kept = front([choice(5, 3), choice(4, 3), choice(6, 1), choice(7, 2), choice(6, 1)])
    assert [(c.bytes, c.loss) for c in kept] == [(4, 3), (6, 1)]


def test_what_highs_prints_does_not_reach_standard_output(capfd):
    def prints(*args, **kwargs):
        os.write(1, b"printed from C++\n")
        return SimpleNamespace(x=None, status=2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(highs, "milp", prints)
        highs.least_loss(instance(0), 2500)
    print("and the program's own goes on")
    printed = capfd.readouterr()
    assert printed.out == "and the program's own goes on\n"
    assert "printed from C++" in printed.err


def test_highs_says_when_it_was_stopped(monkeypatch, caplog):
    """HiGHS must have been called; how long it takes is no promise of ours."""
    options = {str(i): [choice(9 - k, (i + 2.0) ** k) for k in range(9)] for i in range(5)}
    limit, milp = 20, highs.milp

    def stopped(*args, **kwargs):
        found = milp(*args, **kwargs)
        found.status, found.mip_gap = highs.STOPPED, 0.125
        return found

    highs.least_loss(options, limit)
    assert "HiGHS" not in caplog.text
    monkeypatch.setattr(highs, "milp", stopped)
    found = highs.least_loss(options, limit)
    assert f"HiGHS was stopped after {highs.SECONDS:g} s, 1.2e-01 from its bound" in caplog.text
    assert total_bytes(found) <= limit
    assert total_loss(found) <= total_loss(greedy.least_loss(options, limit))


def layer(name, values, size=8):
    """A linear layer whose weight has these singular values, and what low_rank makes of it.

    Predicted losses are those of inputs of unit covariance: half the squares of what is left out.
    """
    rng = np.random.default_rng(len(name))
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    full = np.zeros(size)
    full[: len(values)] = values
    weight = torch.tensor((left * full) @ right, dtype=torch.float32)
    spec = LinearSpec(name=name, inputs=size, outputs=size, bias=False)
    made = Layer(spec, weight, None, LinearStatistics.unmeasured(size))
    found = [Choice("keep", keep.Settings(), 4 * size * size, 0.0)]
    for rank in range(1, size // 2):
        settings = low_rank.Settings(rank=rank, storage="float16")
        found.append(Choice("low_rank", settings, 4 * size * rank, 0.5 * sum(full[rank:] ** 2)))
    return Menu(made, tuple(found))


def ranks(chosen):
    return {name: getattr(c.settings, "rank", "keep") for name, c in chosen.items()}


def test_one_threshold_gives_ranks_to_layers_whose_spectrum_falls_slowly():
    options = {"fast": layer("fast", [9, 0.9, 0.09]), "slow": layer("slow", [1, 0.8, 0.3, 0.2])}
    wanted = [
        (64, {"fast": 1, "slow": 1}),
        (95, {"fast": 1, "slow": 1}),
        (96, {"fast": 1, "slow": 2}),  # below 0.8
        (128, {"fast": 1, "slow": 3}),  # below 0.3
        (288, {"fast": 1, "slow": "keep"}),  # below 0.2, and no fourth rank is offered
        (320, {"fast": 2, "slow": "keep"}),  # below 0.1
        (352, {"fast": 3, "slow": "keep"}),  # below 0.01
        (512, {"fast": "keep", "slow": "keep"}),
    ]
    for most_bytes, expected in wanted:
        assert ranks(welore.least_loss(options, most_bytes)) == expected
    assert welore.least_loss(options, 63) is None


def test_the_dual_of_a_threshold_is_the_highest_that_keeps_to_the_loss():
    options = {"fast": layer("fast", [9, 0.9, 0.09]), "slow": layer("slow", [1, 0.8, 0.3, 0.2])}
    losses = 0.5 * (0.9**2 + 0.09**2), 0.5 * (0.3**2 + 0.2**2)  # of ranks 1 and 2
    found = welore.least_bytes(options, sum(losses) * 1.001)
    assert ranks(found) == {"fast": 1, "slow": 2}
    assert ranks(welore.least_bytes(options, sum(losses) * 0.999)) == {"fast": 1, "slow": 3}
    assert ranks(welore.least_bytes(options, 0.0)) == {"fast": 3, "slow": "keep"}  # of rank 3
    assert ranks(welore.least_bytes(options, np.inf)) == {"fast": 1, "slow": 1}


def test_a_threshold_is_blind_to_what_a_rank_costs():
    scaled = layer("slow", [1, 0.8, 0.3, 0.2])
    cheap = Menu(
        scaled.layer, tuple(Choice(c.method, c.settings, c.bytes, c.loss / 1e6) for c in scaled)
    )
    options = {"fast": layer("fast", [9, 0.9, 0.09]), "slow": cheap}
    assert ranks(welore.least_loss(options, 128)) == {"fast": 1, "slow": 3}
    assert ranks(exact.least_loss(options, 128)) == {"fast": 3, "slow": 1}


def test_the_heavier_tail_keeps_the_larger_share():
    options = {
        "heavy": layer("heavy", np.exp(-np.arange(16)), 16),
        "light": layer("light", np.linspace(1, 0.8, 16), 16),
    }
    heavy, light = (spectra.tail_exponent(menu.layer) for menu in options.values())
    assert 1 < heavy < light
    found = farms.least_loss(options, 64 * 8)
    assert ranks(found) == {"heavy": 5, "light": 3}  # shares of 1.3 to 0.7 of 8 x 16 parameters
    assert farms.relative_shares(np.array([2.0, 3.0, 4.0])) == pytest.approx([1.3, 1.0, 0.7])
    assert farms.relative_shares(np.array([2.0, 2.0])) == pytest.approx([1, 1])


@pytest.mark.parametrize("exponent", [2.0, 3.0, 6.0])
def test_the_exponent_of_a_power_law_is_found(exponent):
    chances = (np.arange(20_000) + 0.5) / 20_000
    values = chances ** (-1 / (exponent - 1))  # quantiles of a density x^-exponent from 1 on
    assert spectra.hill(values) == pytest.approx(exponent, rel=1e-2)


def test_the_exponent_does_not_depend_on_the_shape():
    rng = torch.Generator().manual_seed(0)
    exponents = []
    for rows, columns in ((64, 64), (64, 1024), (20_000, 64)):
        spec = LinearSpec(name="l", inputs=columns, outputs=rows, bias=False)
        weight = torch.randn(rows, columns, generator=rng)
        made = Layer(spec, weight, None, LinearStatistics.unmeasured(columns))
        exponents.append(spectra.tail_exponent(made))
    assert exponents == pytest.approx([exponents[0]] * 3, rel=0.15)
    whole = spectra.hill(np.linalg.svd(weight.numpy(), compute_uv=False) ** 2)
    assert whole > 2 * exponents[-1]


@pytest.mark.parametrize("solver", BY_SPECTRUM)
@pytest.mark.parametrize("seed", range(4))
def test_baselines_keep_to_their_limit_and_are_never_better_than_the_best(solver, seed):
    rng = np.random.default_rng(seed)
    options = {f"{i:_>{i + 1}}": layer(f"{i}", rng.lognormal(0, 2, 12), 16) for i in range(4)}
    for limit in (300, 900, 2500):
        found, best = solver.least_loss(options, limit), exact.least_loss(options, limit)
        assert total_bytes(found) <= limit and total_loss(found) >= total_loss(best) - 1e-9
    for limit in (0.01, 1.0, 30.0):
        found, best = solver.least_bytes(options, limit), exact.least_bytes(options, limit)
        assert total_loss(found) <= limit * (1 + 1e-8) and total_bytes(found) >= total_bytes(best)


@pytest.mark.parametrize("solver", BY_SPECTRUM)
def test_of_several_storages_the_best_is_taken_for_all_layers(solver):
    menu = layer("slow", [1, 0.8, 0.3, 0.2])
    halved = [
        Choice(c.method, low_rank.Settings(rank=c.settings.rank, storage="column_int8"),
               c.bytes // 2, c.loss + 1e-4)
        for c in menu if c.method == "low_rank"
    ]  # fmt: skip
    options = {"a": Menu(menu.layer, (*menu, *halved)), "b": Menu(menu.layer, (*menu, *halved))}
    small, large = solver.least_loss(options, 96), solver.least_loss(options, 4000)
    assert {c.settings.storage for c in small.values()} == {"column_int8"}
    assert {c.method for c in large.values()} == {"keep"}


@pytest.mark.parametrize("solver", BY_SPECTRUM)
def test_methods_without_ranks_leave_a_rank_heuristic_nothing_to_choose(solver):
    menu = layer("slow", [1, 0.8, 0.3, 0.2])
    options = {"a": Menu(menu.layer, (menu[0],))}
    with pytest.raises(BadSettings, match="none of the methods has any; allow low_rank or svd"):
        solver.least_loss(options, 10**6)
