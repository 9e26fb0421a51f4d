"""Figures of `benchmarks.ordered`: one artifact at several budgets, against models made apart."""

from __future__ import annotations

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


def _seeds(record: Record, name: str) -> list[dict[str, Any]]:
    return [record["results"][f"{name}-{seed}"] for seed in record["seeds"]]


def _cells(seeds: list[dict[str, Any]]) -> list[str]:
    if any("reason" in one for one in seeds):
        return ["-", "-"]
    size = mean(one["bytes"]["total"] for one in seeds)
    return [f"{size:,.0f}", plus_minus(over_seeds([one["auc"] for one in seeds]))]
