"""A deployment too large to try: placement, traffic, queues and failures of shards, simulated.

    python -m benchmarks.scale

Tables of `--tables-tb` lie in 256 slots, which groups of machines hold, each `--replicas` times. A
call asks every group at once and waits for the slowest, so what matters is the maximum over groups
and not the mean of one. What is simulated: ids drawn by Zipf's law and where they go; messages in
first-come queues of machines with several cores, with stalls, and asked again of a replica when a
replica's share of the deadline has passed; machines and racks that fail and load their slots again.
What is assumed is in the record's settings; runs named "with ..." change one assumption each.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import result
from benchmarks.script import command, console, parser
from embedcomp.kernels.routing import SLOTS

HOUR, DAY, YEAR = 3600.0, 86_400.0, 365.25 * 86_400.0
HEAD = 200_000  # ids whose shares are added up one by one; those beyond by an integral
WARM_UP = 0.1  # of the calls, which queues take to fill
REPLICAS = (1, 2, 3)
AIMED = 0.9999  # share of calls for which every slot has a machine


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is deployed, and what is assumed of it."""

    tables_bytes: float = 10e12  # of rows as they are served
    row_bytes: int = 256
    width: int = 64  # numbers that travel for a row
    tables: int = 26
    zipf: float = 0.9  # exponent of ids' popularity
    near_bytes: int = 1 << 20  # of each table, at the front
    memory_bytes: float = 1024e9  # of a machine
    usable: float = 0.75  # of it, for slots: two versions may be there while one is swapped
    cores: int = 16
    answering: int = 4  # of them, that messages keep busy at most: Python's lock is held for a part
    network_bytes_s: float = 3.125e9  # 25 Gbit/s
    calls_s: float = 40_000.0
    rows: int = 64  # of a call
    message_us: float = 50.0  # of a shard's core for a message,
    id_us: float = 0.14  # and for each of its ids
    front_us: float = 71.0  # of a front's core for a message and its answer
    model_us: float = 100.0  # and for the rest of a call
    trip_us: float = 100.0  # there and back, of a network
    stalls: float = (
        1e-4  # share of messages that meet a stall: a page that is not in memory, a thread
    )
    stall_ms: float = 5.0  # that has to wait; mean of an exponential distribution
    deadline_ms: float = 30.0
    replicas: int = 2
    machine_days: float = 60.0  # from one failure of a machine to the next, mean
    lost: float = 0.1  # of failures, after which another machine is taken,
    lost_s: float = 900.0  # which takes so long,
    restart_s: float = 10.0  # and that a process is back otherwise, as it notices and starts
    load_bytes_s: float = 1e9  # at which slots are read and checked again
    rack: int = 16  # machines of a rack,
    rack_days: float = 730.0  # which fails so often
    rack_s: float = 1800.0  # for so long
    apart: bool = True  # replicas are in different racks

    @property
    def slots_of_machine(self) -> int:
        """Slots that a machine holds."""
        return int(self.memory_bytes * self.usable // (self.tables_bytes / SLOTS))

    @property
    def groups(self) -> int:
        """Groups of machines that hold the same slots."""
        held = self.slots_of_machine
        assert held > 0, "a slot is larger than a machine"
        return math.ceil(SLOTS / min(held, SLOTS))

    @property
    def owner(self) -> np.ndarray:
        """The group of each slot, [SLOTS]: dealt out, so that their numbers differ by 1 at most."""
        return np.arange(SLOTS) % self.groups

    @property
    def ids(self) -> int:
        """Of each table."""
        return int(self.tables_bytes / self.row_bytes / self.tables)

    @property
    def near_ids(self) -> int:
        return self.near_bytes // self.row_bytes

    @property
    def load_s(self) -> float:
        """Until a machine has read its slots."""
        most = math.ceil(SLOTS / self.groups)
        return most * self.tables_bytes / SLOTS / self.load_bytes_s


class Zipf:
    """Ids 0 to n - 1, of which id i is drawn as often as (i + 1)^-exponent says."""

    def __init__(self, n: int, exponent: float):
        self.n, self.exponent = n, exponent
        self._head = min(n, HEAD)
        self.weights = np.arange(1, self._head + 1, dtype=float) ** -exponent
        self._sums = np.cumsum(self.weights)
        self.total = self._sums[-1] + self._integral(self._head + 0.5, n + 0.5)

    def _integral(self, a: float, b: float) -> float:
        left = 1 - self.exponent
        return math.log(b / a) if left == 0 else (b**left - a**left) / left

    def share_of_first(self, k: int) -> float:
        """Share of draws that are of the first k ids."""
        if k <= self._head:
            return float(self._sums[k - 1] / self.total) if k else 0.0
        return float((self._sums[-1] + self._integral(self._head + 0.5, k + 0.5)) / self.total)

    def draw(self, random: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
        """Ids int64 [size]."""
        at = random.random(size) * self.total
        found = np.searchsorted(self._sums, at, side="right")
        beyond, left = at >= self._sums[-1], 1 - self.exponent
        more, start = at[beyond] - self._sums[-1], self._head + 0.5
        end = start * np.exp(more) if left == 0 else (start**left + left * more) ** (1 / left)
        found[beyond] = np.minimum(np.round(end).astype(np.int64) - 1, self.n - 1)
        return found.astype(np.int64)

    def of_slots(self, near: int) -> np.ndarray:
        """Share of draws that each slot answers [SLOTS], without the first `near` ids."""
        own = np.arange(near, self._head)
        found = np.bincount(own % SLOTS, self.weights[near:], SLOTS)
        tail = self.total - self._sums[-1]
        return (found + tail / SLOTS) / self.total


def asked(plan: Plan, calls: int, random: np.random.Generator) -> np.ndarray:
    """Ids that calls ask each group for, [calls, groups]."""
    zipf, found = Zipf(plan.ids, plan.zipf), np.zeros((calls, plan.groups), np.int64)
    for call in range(calls):
        ids = zipf.draw(random, (plan.tables * plan.rows,))
        ids = ids[ids >= plan.near_ids]
        found[call] = np.bincount(plan.owner[ids % SLOTS], minlength=plan.groups)
    return found


def waits(arrivals: np.ndarray, services: np.ndarray, servers: int) -> np.ndarray:
    """How long each message waits for one of several servers, first come, first served [n, groups].

    Args:
        arrivals: [n, groups], each column ascending.
        services: [n, groups].
    """
    found = np.empty_like(services)
    for group in range(services.shape[1]):
        free = [0.0] * servers
        for n, (at, takes) in enumerate(
            zip(arrivals[:, group].tolist(), services[:, group].tolist(), strict=True)
        ):
            begins = max(at, free[0])
            found[n, group] = begins - at
            heapq.heapreplace(free, begins + takes)
    return found


def traffic(plan: Plan, calls: int, seed: int) -> dict[str, Any]:
    """Latencies of calls, loads and bytes."""
    random = np.random.default_rng(seed)
    some = asked(plan, min(calls, 500), random)
    ids = some[random.integers(0, len(some), calls)]
    takes = (plan.message_us + plan.id_us * ids) * 1e-6
    stalled = random.random(ids.shape) < plan.stalls
    takes += stalled * random.exponential(plan.stall_ms * 1e-3, ids.shape)
    arrivals = np.cumsum(random.exponential(1 / plan.calls_s, calls))
    order = np.arange(plan.groups) * plan.front_us * 0.5e-6  # a front sends one after another
    answered = np.empty_like(takes)
    for turn in range(plan.replicas):  # replicas take turns
        own = slice(turn, None, plan.replicas)
        at = arrivals[own, None] + order
        answered[own] = waits(at, takes[own], plan.answering) + takes[own] + plan.trip_us * 1e-6
    first = int(calls * WARM_UP)
    answered, ids = answered[first:], ids[first:]
    deadline = plan.deadline_ms * 1e-3
    late = answered > deadline / plan.replicas
    again = answered[random.integers(0, len(answered), answered.shape), np.arange(plan.groups)]
    told = np.where(late & (plan.replicas > 1), deadline / plan.replicas + again, answered)
    front = (plan.groups * plan.front_us + plan.model_us) * 1e-6
    whole = told.max(1) + front
    load = Zipf(plan.ids, plan.zipf).of_slots(plan.near_ids)
    of_groups = np.bincount(plan.owner, load)
    bags = ids.sum(1).mean()
    sent = 4 * (4 * plan.groups + 2 * bags) + 16 * plan.groups * plan.tables
    got = 4 * bags * (plan.width + 1)
    return {
        "front_share": 1 - float(load.sum()),
        "busiest_group": float(of_groups.max() / of_groups.mean()),
        "messages": plan.groups,
        "ids_sent": float(bags),
        "bytes_sent": float(sent),
        "bytes_answered": float(got),
        "busy": float(takes.mean() * plan.calls_s / plan.replicas / plan.answering),
        "one": _percentiles(answered.ravel()),
        "slowest": _percentiles(answered.max(1)),
        "call": _percentiles(whole),
        "late": float((told.max(1) > deadline).mean()),
        "asked_again": float(late.any(1).mean()),
        "front_ms": front * 1e3,
        "fronts": math.ceil(  # with their cores and their networks half busy
            plan.calls_s * max(front / (0.5 * plan.cores), got / (0.5 * plan.network_bytes_s))
        ),
        "front_network": float(got * plan.calls_s),
    }


def _percentiles(of: np.ndarray) -> dict[str, float]:
    return {f"p{p}_ms": float(np.percentile(of, p)) * 1e3 for p in (50, 99)}


def downs(
    random: np.random.Generator, years: float, every_s: float, lasts: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Times at which something that fails begins to be down, and is up again.

    Args:
        every_s: that it is up, mean of an exponential distribution.
        lasts: that it is down: one of these.
    """
    number = int(years * YEAR / every_s * 1.5) + 50
    down = random.choice(np.atleast_1d(lasts), number)
    up = random.exponential(every_s, number)
    begins = np.cumsum(up) + np.concatenate([[0.0], np.cumsum(down)[:-1]])
    kept = begins < years * YEAR
    return begins[kept], np.minimum(begins + down, years * YEAR)[kept]


def failures(plan: Plan, years: float, seed: int) -> dict[str, float]:
    """Share of the time, and so of calls, in which some group has no machine that is up."""
    random = np.random.default_rng(seed)
    machines = plan.groups * plan.replicas
    back = plan.restart_s + plan.load_s
    lasts = np.where(np.arange(1000) < plan.lost * 1000, plan.lost_s + back, back)
    events: list[tuple[float, int, int]] = []

    def fails(machine: int, began: np.ndarray, ended: np.ndarray) -> None:
        events.extend((t, machine, 1) for t in began.tolist())
        events.extend((t, machine, -1) for t in ended.tolist())

    for machine in range(machines):
        fails(machine, *downs(random, years, plan.machine_days * DAY, lasts))
    place = rack_of(plan, random)
    for rack in range(int(place.max()) + 1):
        began, ended = downs(random, years, plan.rack_days * DAY, plan.rack_s + plan.load_s)
        for machine in np.flatnonzero(place == rack).tolist():
            fails(machine, began, ended)
    events.sort()
    broken = [0] * machines  # reasons to be down
    up = [plan.replicas] * plan.groups
    without, dead, since, times = 0, 0.0, 0.0, 0
    for time, machine, change in events:
        if without:
            dead += time - since
        since = time
        before = broken[machine] > 0
        broken[machine] += change
        after, group = broken[machine] > 0, machine % plan.groups
        if before == after:
            continue
        had = up[group]
        up[group] += 1 if before else -1
        if up[group] == 0:
            times += without == 0
            without += 1
        elif had == 0:
            without -= 1
    return {
        "available": 1 - dead / (years * YEAR),
        "outages_a_year": times / years,
        "failures_a_year": len(events) / 2 / years,
        "back_s": back,
    }


def rack_of(plan: Plan, random: np.random.Generator) -> np.ndarray:
    """The rack of each machine; machine m is a replica of group m % groups."""
    machines = plan.groups * plan.replicas
    if not plan.apart:
        return random.permutation(machines) // plan.rack
    racks = math.ceil(plan.groups / plan.rack)  # of each replica's own
    number, group = np.divmod(np.arange(machines), plan.groups)
    return number * racks + group // plan.rack


def plans(given: Plan) -> dict[str, Plan]:
    """The plan, and others that change one assumption."""
    return {
        "the plan": given,
        "with 10x fewer bytes": replace(given, tables_bytes=given.tables_bytes / 10),
        "with machines of 256 GB": replace(given, memory_bytes=256e9),
        "with popularity of exponent 0.7": replace(given, zipf=0.7),
        "with popularity of exponent 1.1": replace(given, zipf=1.1),
        "with 64 MiB of each table near": replace(given, near_bytes=64 << 20),
        "with twice the calls": replace(given, calls_s=2 * given.calls_s),
        "with no stalls": replace(given, stalls=0.0),
        "with ten times the stalls": replace(given, stalls=10 * given.stalls),
        "with replicas in any rack": replace(given, apart=False),
        "with failures every 6 days": replace(given, machine_days=given.machine_days / 10),
        "with slots loaded at 100 MB/s": replace(given, load_bytes_s=1e8),
    }


def main() -> None:
    options = parser(__doc__, data=False)
    options.add_argument("--tables-tb", type=float, default=10.0)
    options.add_argument("--replicas", type=int, default=2)
    options.add_argument("--calls", type=int, default=20_000, help="that are simulated")
    options.add_argument("--years", type=float, default=400.0, help="of failures")
    given = options.parse_args()
    plan = Plan(tables_bytes=given.tables_tb * 1e12, replicas=given.replicas)
    found = {name: simulated(one, given) for name, one in plans(plan).items()}
    console.print(_render(found))
    print(
        result.write(
            "scale",
            data={"simulated": True},
            settings={**asdict(plan), "calls": given.calls, "years": given.years},
            seeds=[0],
            results=found,
            folder=given.results,
        )
    )


def simulated(plan: Plan, given: Any) -> dict[str, Any]:
    by_replicas = {
        str(n): failures(replace(plan, replicas=n), given.years, seed=0) for n in REPLICAS
    }
    enough = [n for n in REPLICAS if by_replicas[str(n)]["available"] >= AIMED]
    return {
        "slot_bytes": plan.tables_bytes / SLOTS,
        "ids_of_a_table": plan.ids,
        "slots_of_machine": math.ceil(SLOTS / plan.groups),
        "groups": plan.groups,
        "machines": plan.groups * plan.replicas,
        "traffic": traffic(plan, given.calls, seed=0),
        "failures": by_replicas,
        "replicas_needed": enough[0] if enough else None,
    }


def _render(found: dict[str, Any]) -> Table:
    table = Table("", "groups", "busy", "one p99", "slowest p50", "p99", "call p99", "late", "R")
    for name, one in found.items():
        of = one["traffic"]
        times = [of["one"]["p99_ms"], *of["slowest"].values(), of["call"]["p99_ms"]]
        cells = [f"{one['groups']}", f"{of['busy']:.2f}", *(f"{t:.2f}" for t in times)]
        table.add_row(name, *cells, f"{of['late']:.1e}", str(one["replicas_needed"]))
    return table


if __name__ == "__main__":
    command(main)
