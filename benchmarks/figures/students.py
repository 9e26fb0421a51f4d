"""Figures of `benchmarks.students`: smaller networks in the original's place."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.figures.markdown import each, table
from benchmarks.figures.record import Record
from benchmarks.result import over_seeds


def forms(*records: Record) -> list[str]:
    """Each form's AUC on validation rows and on the test split, against its seed's control."""
    head = ["log", "form", "bytes", "AUC, validation", "in floats", "AUC, test"]
    head += ["AUC - control (each seed)", "log loss", "scored rows/s"]
    rows = []
    for record in records:
        for name, seeds in record["results"].items():
            rows.append([record["data"]["name"], name, *_cells(seeds, record["results"])])
    return table(head, rows, text=(0, 1))


def _cells(seeds: list[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    tests = [one["test"] for one in seeds]
    if not all(tests):
        return ["-"] * 7
    controls = [one["test"]["auc"] for one in results["control"]]
    floats = [one["floats"]["auc"] for one in seeds if "floats" in one]
    lost = [one["auc"] - control for one, control in zip(tests, controls, strict=True)]
    return [
        f"{max(one['bytes']['total'] for one in tests):,}",
        f"{mean(one['auc'] for one in seeds):.5f}",
        f"{mean(floats):.5f}" if floats else "",
        f"{mean(one['auc'] for one in tests):.5f}",
        each(over_seeds(lost)),
        f"{mean(one['logloss'] for one in tests):.5f}",
        f"{mean(one['rows_per_second']['64'] for one in tests):,.0f}",
    ]
