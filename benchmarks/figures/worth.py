"""Figures of `benchmarks.worth`: what each method is worth to a mix, and bytes in parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record, claim

PARTS = ("total", "resident", "vocabularies", "program", "disk")


def mixes(*records: Record) -> list[str]:
    """AUC on the test split with a method less or more, minus that of the mix, by budget."""
    rows = []
    for record in records:
        found, budgets = record["results"], list(record["results"])
        names = sorted({name for made in found.values() for name in made if name != "mix"})
        for name in sorted(names, key=lambda name: not name.startswith("without")):
            cells = [_than_the_mix(found[budget], name) for budget in budgets]
            rows.append([record["data"]["name"], name, *cells])
    return table(["log", "mix", *budgets], rows, text=(0, 1))


def _than_the_mix(made: dict[str, Any], name: str) -> str:
    if name not in made:
        return "the same"
    if not made[name]:
        return "no plan"
    return f"{made['mix']['auc_loss'] - made[name]['auc_loss']:+.5f}"


def said(*records: Record) -> Iterator[float]:
    """What a plan loses without low_rank and trellis_coded, and wins by weight_clustering."""
    films, videos, clicks = records
    for record in (films, videos):
        yield -_gain(record, "20x", "without low_rank")
        claim(record["results"]["50x"]["without low_rank"] == {}, "50x takes low_rank")
    for record in (films, clicks):
        yield from (-_gain(record, budget, "without trellis_coded") for budget in ("50x", "100x"))
    others = [
        -_gain(record, budget, name)
        for record in records
        for budget, found in record["results"].items()
        for name in found
        if name.startswith("without ") and name.split()[1] not in ("low_rank", "trellis_coded")
    ]
    claim(max(others) < 1e-4, "no other method is worth 1e-4")
    won: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for budget, found in record["results"].items():
            for name in found:
                if name.startswith("with ") and _is_clear(record, budget, name):
                    won[name].add(record["data"]["name"])
    twice = sorted(name for name, logs in won.items() if len(logs) > 1)
    claim(twice == ["with weight_clustering"], "one baseline is better on two logs")
    yield from (_gain(record, "100x", "with weight_clustering") for record in (films, videos))


def chance(*records: Record) -> Iterator[float]:
    """Leaving drop_rare out at 100x: per cent of predicted loss, and AUC that is won."""
    name, more = "without drop_rare", []
    for record in records:
        found = record["results"]["100x"]
        more.append(100 * found[name]["predicted_loss"] / found["mix"]["predicted_loss"] - 100)
    won = [_gain(record, "100x", name) for record in records]
    yield from (min(more), max(more), min(won), max(won))


def _gain(record: Record, budget: str, name: str) -> float:
    """AUC of a mix with a change, minus that of the mix."""
    found = record["results"][budget]
    gain: float = found["mix"]["auc_loss"] - found[name]["auc_loss"]
    return gain


def _is_clear(record: Record, budget: str, name: str) -> bool:
    """Whether a change wins more than two standard errors of what the mix loses."""
    found = record["results"][budget]
    return bool(found[name]) and _gain(record, budget, name) > 2 * found["mix"]["auc_error"]


def parts(*records: Record) -> list[str]:
    """Bytes of the mix's artifacts at each budget, in parts."""
    rows = []
    for record in records:
        for budget, made in record["results"].items():
            sizes = made["mix"]["bytes"]
            rows.append([record["data"]["name"], budget, *(f"{sizes[part]:,}" for part in PARTS)])
    return table(["log", "budget", "tensors", *PARTS[1:]], rows, text=(0, 1))


def resident(*records: Record) -> list[str]:
    """Resident bytes of each method's layers over their stored ones, in all plans together."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for made in record["results"].values():
            for plan in made.values():
                for method, sizes in plan.get("bytes_by_method", {}).items():
                    total[method] += Counter(sizes)
    rows = [
        [method, f"{sizes['stored']:,}", f"{sizes['resident'] / sizes['stored']:.2f}"]
        for method, sizes in sorted(total.items())
    ]
    return table(["method", "stored bytes", "resident / stored"], rows, text=(0,))
