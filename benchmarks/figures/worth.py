"""Figures of `benchmarks.worth`: what each method is worth to a mix, and bytes in parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

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
