"""Figures of `benchmarks.ordered`: one artifact at several budgets, against models made apart."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from benchmarks.figures.markdown import plus_minus, table
from benchmarks.figures.record import Record, claim
from benchmarks.result import over_seeds


def budgets(record: Record) -> list[str]:
    """AUC and bytes at each budget: served from one artifact, and compressed apart."""
    told = record["settings"]
    ways = {"one artifact": "served-{}", "`ordered_rank` apart": "apart-{}"}
    for epochs in told["tune_epochs"]:
        tuned = f"tuned {epochs} epoch" if epochs else "untuned"
        ways[f"post-training plan, {tuned}"] = f"planned-{{}}-tuned-{epochs}"
    head = ["budget", *(cell for way in ways for cell in (f"{way}: bytes", "AUC"))]
    rows = []
    for budget in told["budgets"]:
        made = [_seeds(record, step.format(budget)) for step in ways.values()]
        same = all(one.get("same_bytes", True) for one in made[0])
        claim(same, f"codes of {budget} are those of the file, to the byte")
        rows.append([budget, *(cell for seeds in made for cell in _cells(seeds))])
    return table(head, rows)


def nested(record: Record) -> Iterator[float]:
    """What one artifact loses to models of their own, at most down to 10x, and at 30x."""

    def auc(step: str) -> float:
        return mean(one["auc"] for one in _seeds(record, step))

    lost = {b: auc(f"apart-{b}") - auc(f"served-{b}") for b in record["settings"]["budgets"]}
    claim(auc("planned-30x-tuned-0") > auc("apart-30x") > auc("served-30x"), "plans are better")
    yield from (max(lost["5x"], lost["10x"]), lost["30x"])


def _seeds(record: Record, name: str) -> list[dict[str, Any]]:
    return [record["results"][f"{name}-{seed}"] for seed in record["seeds"]]


def _cells(seeds: list[dict[str, Any]]) -> list[str]:
    if any("reason" in one for one in seeds):
        return ["-", "-"]
    size = mean(one["bytes"]["total"] for one in seeds)
    return [f"{size:,.0f}", plus_minus(over_seeds([one["auc"] for one in seeds]))]
