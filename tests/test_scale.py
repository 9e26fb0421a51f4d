"""The pieces of the simulation of a large deployment, against answers that are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import DAY, SLOTS, YEAR, Plan, Zipf, waits


def simulated(load: float, servers: int, services: str, number: int = 200_000) -> float:
    """Mean wait in services, whose mean is 1."""
    random = np.random.default_rng(0)
    arrivals = np.cumsum(random.exponential(1 / (load * servers), number))[:, None]
    takes = np.ones((number, 1)) if services == "D" else random.exponential(1, (number, 1))
    return float(waits(arrivals, takes, servers)[number // 10 :].mean())


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waits_are_those_of_one_server(load: float) -> None:
    assert simulated(load, 1, "M") == pytest.approx(load / (1 - load), rel=0.06)  # M/M/1
    assert simulated(load, 1, "D") == pytest.approx(load / (2 * (1 - load)), rel=0.06)  # M/D/1


def test_waits_are_those_of_several_servers() -> None:
    servers, load = 4, 0.8
    offered = servers * load
    beyond = offered**servers / math.factorial(servers) / (1 - load)
    all_busy = beyond / (sum(offered**k / math.factorial(k) for k in range(servers)) + beyond)
    wanted = all_busy / (servers * (1 - load))  # Erlang's C
    assert simulated(load, servers, "M") == pytest.approx(wanted, rel=0.06)


def test_each_group_has_a_queue_of_its_own() -> None:
    arrivals = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    services = np.array([[3.0, 0.5], [1.0, 0.5], [1.0, 0.5]])
    assert waits(arrivals, services, 1).tolist() == [[0, 0], [2, 0], [2, 0]]
    assert waits(arrivals, services, 2).tolist() == [[0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.2])
def test_zipf_is_the_sum_of_its_ids(exponent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    n, near = 5_000, 40
    exact = np.arange(1, n + 1) ** -exponent
    exact /= exact.sum()
    monkeypatch.setattr(scale, "HEAD", 200)  # beyond, an integral
    zipf = Zipf(n, exponent)
    assert zipf.share_of_first(40) == pytest.approx(exact[:40].sum(), rel=1e-4)
    assert zipf.share_of_first(1_000) == pytest.approx(exact[:1_000].sum(), rel=1e-4)
    drawn = zipf.draw(np.random.default_rng(0), (400_000,))
    assert drawn.min() >= 0 and drawn.max() < n
    for first, last in ((0, 1), (1, 10), (150, 250), (300, 2_000), (2_000, n)):
        share = ((drawn >= first) & (drawn < last)).mean()
        assert share == pytest.approx(exact[first:last].sum(), rel=0.03)
    assert zipf.of_slots(near).sum() == pytest.approx(exact[near:].sum(), rel=1e-3)
    assert Zipf(180, exponent).of_slots(0)[3] == pytest.approx(
        4**-exponent / (np.arange(1, 181) ** -exponent).sum()
    )


ALONE = Plan(
    tables_bytes=SLOTS * 1e9,
    memory_bytes=2 * SLOTS * 1e9,
    usable=1.0,
    load_bytes_s=SLOTS * 1e9 / 9e4,
    machine_days=10.0,
    lost=0.0,
    restart_s=0.0,
    rack_days=1e9,
)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_availability_is_that_of_independent_replicas(replicas: int) -> None:
    """A machine is up for 10 days and down for 90,000 s, on average."""
    assert ALONE.groups == 1 and ALONE.load_s == pytest.approx(9e4)
    found = scale.failures(replace(ALONE, replicas=replicas), years=3_000, seed=0)
    down = 9e4 / (9e4 + 10 * DAY)
    assert 1 - found["available"] == pytest.approx(down**replicas, rel=0.08)


@pytest.mark.slow
def test_any_group_without_a_machine_is_an_outage() -> None:
    plan = replace(ALONE, memory_bytes=SLOTS * 1e9 / 8, load_bytes_s=SLOTS * 1e9 / 8 / 9e4)
    assert plan.groups == 8
    found = scale.failures(replace(plan, replicas=2), years=1_000, seed=0)
    down = (9e4 / (9e4 + 10 * DAY)) ** 2
    assert found["available"] == pytest.approx((1 - down) ** 8, rel=5e-3)
    assert 1 - found["available"] == pytest.approx(1 - (1 - down) ** 8, rel=0.08)


def test_a_rack_takes_both_replicas_only_where_they_are_in_it() -> None:
    plan = replace(
        ALONE, machine_days=1e9, rack_days=10.0, rack=100, rack_s=0.0, replicas=2, apart=False
    )
    together = scale.failures(plan, years=1_000, seed=0)
    apart = scale.failures(replace(plan, apart=True), years=1_000, seed=0)
    down = 9e4 / (9e4 + 10 * DAY)
    assert 1 - together["available"] == pytest.approx(down, rel=0.08)
    assert 1 - apart["available"] == pytest.approx(down**2, rel=0.15)


def test_what_is_down_is_up_between() -> None:
    began, ended = scale.downs(np.random.default_rng(0), 500, DAY, 3600.0)
    assert (began[1:] > ended[:-1]).all() and ended[-1] <= 500 * YEAR
    assert (ended - began).sum() / (500 * YEAR) == pytest.approx(1 / 25, rel=0.02)


def test_machines_hold_all_slots_and_no_more_than_they_have_room_for() -> None:
    plan = Plan()
    assert plan.slots_of_machine == 19 and plan.groups == 14  # 768 GB of 39 GB each
    counts = np.bincount(plan.owner)
    assert counts.sum() == SLOTS and counts.max() <= plan.slots_of_machine
    for apart in (True, False):
        place = scale.rack_of(replace(plan, apart=apart), np.random.default_rng(0))
        assert len(place) == 28 and np.bincount(place).max() <= plan.rack
    own = scale.rack_of(plan, np.random.default_rng(0))
    assert not set(own[:14]) & set(own[14:])


def test_ids_near_the_front_are_not_asked_for() -> None:
    plan = Plan(tables_bytes=1e9, row_bytes=100, tables=5, rows=50, near_bytes=1 << 16)
    found = scale.asked(plan, 200, np.random.default_rng(0))
    kept = 1 - Zipf(plan.ids, plan.zipf).share_of_first(plan.near_ids)
    assert found.shape == (200, plan.groups)
    assert found.sum(1).mean() == pytest.approx(250 * kept, rel=0.02)


def test_a_call_waits_for_the_slowest_group() -> None:
    plan = Plan(stalls=0.02, calls_s=1_000.0)
    found = scale.traffic(plan, 3_000, seed=0)
    assert found["slowest"]["p99_ms"] > found["one"]["p99_ms"]
    met = 1 - (1 - 0.02) ** plan.groups  # calls that meet a stall
    again = found["asked_again"]
    assert again == pytest.approx(1 - (1 - 0.02 * math.exp(-15 / 5)) ** plan.groups, rel=0.3)
    assert again < met
    assert scale.traffic(replace(plan, replicas=1), 3_000, seed=0)["late"] >= found["late"]
