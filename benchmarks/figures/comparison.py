"""Figures of `benchmarks.comparison`: methods alone and the planned mix, at equal bytes.

A cell is one result. Where several records are named, a method is from the first one that has it,
and the mix, which every new method changes, from the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.figures.markdown import each, faster, plus_minus, table
from benchmarks.figures.record import Record, claim
from benchmarks.result import over_seeds
from embedcomp.compare.pictures import Curve, Level, Picture, Point, painted

DCN = "dcnv2"
FAST = "2x@64"  # the latency budget of the part "fast"
BATCHES = ("1", "64", "1024")  # rows of a call whose speed is measured
MIX = "planned"
# in the sentence of a latency budget that is too small
_MICROSECONDS = re.compile(r"(?:is|take|which) (\d+\.\d)")
Result = dict[str, Any]


@dataclass(frozen=True)
class Log:
    """Results on one log, by the records that have them."""

    name: str
    records: Sequence[Record]

    def seeds(
        self, method: str, budget: str = "", epochs: int = 0, model: str = DCN, latency: str = ""
    ) -> dict[int, Result]:
        """Results that were made, by seed; none where no seed's was."""
        cell = (method, budget, epochs, model)
        for record in reversed(self.records) if method == MIX else self.records:
            setups = record["settings"]["setups"]
            found = {
                result["seed"]: result
                for result in record["results"]
                if cell == tuple(result[k] for k in ("method", "budget", "tune_epochs", "model"))
                and _latency(setups, result) == latency
                and result["reason"] is None
            }
            if found:
                return found
        return {}

    def tried(self, budget: str) -> set[str]:
        """Methods that were to be alone at a budget, whether they can or not."""
        results = [result for record in self.records for result in record["results"]]
        return {r["method"] for r in results if r["budget"] == budget and r["model"] == DCN} - {MIX}

    def budgets(self) -> list[str]:
        results = [result for record in self.records for result in record["results"]]
        found = {r["budget"] for r in results if r["budget"] and r["model"] == DCN}
        return sorted(found, key=lambda budget: float(budget.removesuffix("x")))


def logs(records: Sequence[Record]) -> list[Log]:
    names = dict.fromkeys(record["data"]["name"] for record in records)
    return [Log(n, [r for r in records if r["data"]["name"] == n]) for n in names]


def methods(*records: Record) -> list[str]:
    """Every method at 10x, seed 0, untuned and tuned, on each log."""
    both = logs(records)
    head = ["method"]
    for log in both:
        head += [f"{log.name} bytes", "untuned", "tuned", "rows/s"]
    rows = [["original, control", *(cell for log in both for cell in _original(log))]]
    for name in [*sorted(set().union(*(log.tried("10x") for log in both))), MIX]:
        made = [_alone(log, name) for log in both]
        if any(cells[0] != "-" for cells in made):
            rows.append([f"`{name}`", *(cell for cells in made for cell in cells)])
    return table(head, rows)


def budgets(*records: Record) -> list[str]:
    """AUC at each budget, untuned, of the methods that were tried at all of them."""
    (log,) = logs(records)
    sizes = [size for size in log.budgets() if log.seeds(MIX, size)]
    seeds = log.seeds(MIX, sizes[0]).keys()
    rows = []
    for name in [*_alone_at(log, sizes), MIX]:
        made = [log.seeds(name, size) for size in sizes]
        if any(found.keys() >= seeds for found in made):
            whole = [_auc(found) if found.keys() >= seeds else "-" for found in made]
            rows.append([f"`{name}`", *whole])
    if len(seeds) > 1:
        rows.append(["original", _auc(log.seeds("original")), *[""] * (len(sizes) - 1)])
        differences = [f"{mean(_ahead_of_best(log, sizes, size)):+.5f}" for size in sizes]
        rows.append(["planned - the best of each seed", *differences])
    return table([log.name, *sizes], rows)


def frontier(*records: Record) -> Any:
    """The picture of `over_bytes`."""
    return painted(over_bytes(*records))


def over_bytes(*records: Record) -> Picture:
    """AUC over bytes, untuned, of the mix and of the methods that were tried at all its budgets.

    Points are means over seeds, their bars the standard deviation.
    """
    (log,) = logs(records)
    sizes = [size for size in log.budgets() if log.seeds(MIX, size)]
    original = log.seeds("original")
    complete = {  # means over other seeds than the original's would be no points of this picture
        name: [
            found for size in sizes if (found := log.seeds(name, size)).keys() >= original.keys()
        ]
        for name in [*_alone_at(log, sizes), MIX]
    }
    curves = [
        Curve(name, [_point(found) for found in made], name == MIX)
        for name, made in complete.items()
        if made
    ]
    return Picture(
        title=f"{DCN} on {log.name}, test split, {len(original)} seeds, untuned",
        curves=curves,
        levels=[Level("original", mean(result["auc"] for result in original.values()))],
        whole_bytes=mean(result["bytes"]["total"] for result in original.values()),
    )


def tuned(*records: Record) -> list[str]:
    """The mix after one tuning epoch, against the control, seed by seed."""
    head = ["log", "budget", "bytes", "AUC", "control", "AUC - control (each seed)", "log loss"]
    head += ["control", "rows/s against the control"]
    rows = []
    for log in logs(records):
        for size in log.budgets():
            both = against_control(log, size)
            if len(both) < 2:  # other parts have one seed only
                continue
            rows.append(
                [
                    log.name,
                    size,
                    f"{max(a['bytes']['total'] for a, _ in both):,}",
                    plus_minus(over_seeds([a["auc"] for a, _ in both])),
                    f"{mean(b['auc'] for _, b in both):.5f}",
                    each(over_seeds([a["auc"] - b["auc"] for a, b in both])),
                    f"{mean(a['logloss'] for a, _ in both):.5f}",
                    f"{mean(b['logloss'] for _, b in both):.5f}",
                    faster(mean(_rate(a) for a, _ in both) / mean(_rate(b) for _, b in both)),
                ]
            )
    return table(head, rows)


def models(*records: Record) -> list[str]:
    """Every CTR model at 5x, seed 0, also in half of the original's time."""
    head = ["log", "model", "bytes", "limits", "at 5x", "method", "control", "AUC - control"]
    head += ["rows/s against the original at 1 / 64 / 1,024"]
    rows = []
    for log in logs(records):
        results = [result for record in log.records for result in record["results"]]
        for model in dict.fromkeys(r["model"] for r in results if r["model"] != DCN):
            limits = [(latency, method) for latency in ("", FAST) for method in (MIX, "low_rank")]
            made = [_model(log, model, *one) for one in limits]
            rows += _said_once([cells for cells in made if cells])
    return table(head, rows, text=(0, 1, 3, 5))


def nfm(record: Record) -> Iterator[float]:
    """Microseconds of nfm's fastest plan, of half the original, and of what is outside layers."""
    reasons = {r["reason"] for r in record["results"] if r["model"] == "nfm" and r["reason"]}
    claim(len(reasons) == 1, "nfm cannot be made twice as fast, whatever the methods")
    half, fastest, outside = _MICROSECONDS.findall(reasons.pop())[:3]
    yield from (float(fastest), float(half), float(outside))


def aims(*records: Record) -> Iterator[float]:
    """What the tuned mix loses on movielens_1m at 50x in the worst seed; which aims are met."""
    by_name = {log.name: log for log in logs(records)}
    loss = {size: _losses(by_name["movielens_1m"], size) for size in ("10x", "20x", "50x", "100x")}
    claim(mean(loss["10x"]) < 0.00005, "movielens_1m loses nothing at 10x")
    claim(mean(loss["20x"]) <= 0.0005, "movielens_1m loses at most 0.0005 at 20x")
    claim(mean(loss["50x"]) <= 0.0015, "movielens_1m loses at most 0.0015 at 50x")
    claim(mean(loss["100x"]) > 0.004, "movielens_1m loses more than 0.004 at 100x")
    claim(mean(_losses(by_name["kuairand"], "100x")) < 0.00005, "kuairand loses nothing at 100x")
    yield -max(loss["50x"])


def ahead(before: Record, now: Record, quality: Record) -> Iterator[float]:
    """By how much the untuned mix is ahead, at 50x and 100x.

    First of the best method of each seed, then of the mix before `trellis_coded` was there; and
    the standard deviation of kuairand's originals over seeds.
    """
    (log,), (older,) = logs([now]), logs([before])
    sizes = ["5x", "10x", "20x", "50x", "100x"]
    for size in sizes[:3]:
        same = abs(mean(_ahead_of_best(log, sizes, size))) < 0.00002
        claim(same, f"the mix and the best method are equal at {size}")
    for size in sizes[3:]:
        differences = _ahead_of_best(log, sizes, size)
        claim(min(differences) > 0, f"the mix is ahead in every seed at {size}")
        yield mean(differences)
    for size in sizes[3:]:
        made, was = log.seeds(MIX, size), older.seeds(MIX, size)
        yield mean(result["auc"] - was[seed]["auc"] for seed, result in made.items())
    yield quality["results"]["models"]["original"]["auc"]["std"]


def headline(*records: Record) -> Iterator[float]:
    """What DCN-V2 loses at 20x on movielens_1m, tuned; nothing at 10x, and at 100x on kuairand."""
    by_name = {log.name: log for log in logs(records)}
    kept = mean(_losses(by_name["movielens_1m"], "10x"))
    claim(kept < 0.00005, "movielens_1m keeps its AUC at 10x")
    claim(mean(_losses(by_name["kuairand"], "100x")) < 0.00005, "kuairand loses nothing at 100x")
    yield mean(_losses(by_name["movielens_1m"], "20x"))


def _losses(log: Log, size: str) -> list[float]:
    """AUC of the control without that of the tuned mix, of each seed."""
    return [control["auc"] - made["auc"] for made, control in against_control(log, size)]


def against_control(log: Log, size: str) -> list[tuple[Result, Result]]:
    """The tuned mix of each seed, and the control that was tuned as it was."""
    results = [result for record in log.records for result in record["results"]]
    controls = {(r["setup"], r["seed"]): r for r in results if r["method"] == "control"}
    any_control = log.seeds("control", epochs=1)
    made = [result for _, result in sorted(log.seeds(MIX, size, 1).items())]
    return [(r, controls.get((r["setup"], r["seed"]), any_control[r["seed"]])) for r in made]


def _alone_at(log: Log, sizes: Sequence[str]) -> list[str]:
    """Methods that were tried at all of some budgets, by name."""
    return sorted(set.intersection(*(log.tried(size) for size in sizes)))


def _point(found: dict[int, Result]) -> Point:
    """The mean of a model's seeds."""
    auc = over_seeds([result["auc"] for result in found.values()])
    return Point(mean(r["bytes"]["total"] for r in found.values()), auc["mean"], auc["std"])


def _ahead_of_best(log: Log, sizes: Sequence[str], size: str) -> list[float]:
    """AUC of the untuned mix without the best method's alone, of each seed."""
    alone = [log.seeds(name, size) for name in _alone_at(log, sizes)]
    return [
        made["auc"] - max(found[seed]["auc"] for found in alone if seed in found)
        for seed, made in sorted(log.seeds(MIX, size).items())
    ]


def _original(log: Log) -> list[str]:
    original, control = log.seeds("original")[0], log.seeds("control", epochs=1)[0]
    return [_bytes(original), _quality(original), _quality(control), f"{_rate(original):,.0f}"]


def _alone(log: Log, method: str) -> list[str]:
    untuned, after = log.seeds(method, "10x"), log.seeds(method, "10x", 1)
    if not untuned:
        return ["-"] * 4
    made = untuned[0]
    return [_bytes(made), _quality(made), _quality(after[0]), f"{_rate(made):,.0f}"]


def _model(log: Log, model: str, latency: str, method: str) -> list[str]:
    """A row of a model; empty where it was not made."""
    about = {"model": model, "latency": latency}
    made = log.seeds(method, "5x", 1, **about) or log.seeds(method, "5x", 0, **about)
    if not made:
        return []
    original = log.seeds("original", **about)
    control = (log.seeds("control", epochs=1, **about) or original)[0]
    times = [faster(_rate(made[0], rows) / _rate(original[0], rows)) for rows in BATCHES]
    limits = f"5x and {latency}" if latency else "5x"
    return [
        *(log.name, model, _bytes(original[0]), limits, _bytes(made[0]), method),
        *(f"{control['auc']:.5f}", f"{made[0]['auc'] - control['auc']:+.5f}", " / ".join(times)),
    ]


def _said_once(rows: list[list[str]]) -> list[list[str]]:
    """The rows of one model, of which the first alone says what all have in common."""
    common = (0, 1, 2, 6)  # log, model, bytes and control
    others = [["" if i in common else cell for i, cell in enumerate(row)] for row in rows[1:]]
    return [*rows[:1], *others]


def _latency(setups: dict[str, Any], result: Result) -> str:
    setup = setups[f"{result['setup']} {result['version']}"]
    latency: str = setup["settings"].get("latency_budget", "")
    return latency


def _auc(found: dict[int, Result]) -> str:
    return f"{mean(result['auc'] for result in found.values()):.5f}" if found else "-"


def _bytes(result: Result) -> str:
    return f"{result['bytes']['total']:,}"


def _quality(result: Result) -> str:
    return f"{result['auc']:.5f}, {result['logloss']:.4f}"


def _rate(result: Result, rows: str = "1024") -> float:
    rate: float = result["rows_per_second"][rows]
    return rate
