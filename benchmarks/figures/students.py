"""Figures of `benchmarks.students`: smaller networks in the original's place."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from benchmarks.figures.markdown import each, table
from benchmarks.figures.record import Record, claim
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


def said(record: Record) -> Iterator[float]:
    """What is lost to the control at 100x directly, by both teachers, by labels and by scores
    alone, and in floats of that lost; at 50x directly and by both."""
    lost = {name: _lost(record, name) for name in record["results"]}
    claim(lost["100x-0.7"] > max(lost["100x-0"], lost["100x-1"]), "both teach better than one")
    claim(lost["50x-direct"] > lost["50x-0.7"], "at 50x the original itself is better")
    speeds = {name: _speed(seeds) for name, seeds in record["results"].items()}
    claim(speeds["100x-0.7"] > speeds["100x-direct"], "a student is scored faster")
    made = record["results"]["100x-0.7"]
    rounded = mean(one["floats"]["auc"] - one["auc"] for one in made)
    yield from (-lost["100x-direct"], -lost["100x-0.7"], -lost["100x-0"], -lost["100x-1"])
    yield from (rounded, -lost["50x-direct"], -lost["50x-0.7"])


def chosen(record: Record) -> Iterator[float]:
    """Hidden layers of the student whose shape is chosen; validation AUC at 100x of that, of the
    one shape and directly; what the first loses to the control on the test split."""
    found = {name: seeds[0] for name, seeds in record["results"].items()}
    names = "100x-auto", "100x-0.7", "100x-direct"
    aucs = [found[name]["auc"] for name in names]
    claim(aucs == sorted(aucs, reverse=True), "the chosen one is the best on validation rows")
    yield from found["100x-auto"]["shape"]["hidden"]
    yield from aucs
    yield -_lost(record, "100x-auto")


def smaller_is_better(record: Record) -> Iterator[float]:
    """What is won over the control at 100x directly and by a student of labels alone, and how many
    times as fast that is scored."""
    lost = {name: _lost(record, name) for name in record["results"]}
    claim(max(lost, key=lost.__getitem__) == "100x-0", "labels alone teach best")
    claim(lost["100x-direct"] > 0, "the compressed original is better than the control")
    speeds = {name: _speed(seeds) for name, seeds in record["results"].items()}
    yield from (lost["100x-direct"], lost["100x-0"], speeds["100x-0"] / speeds["100x-direct"])


def larger_is_better(record: Record) -> Iterator[float]:
    """What the best student loses to the control, and the original itself at 10x and 30x."""
    lost = {name: -_lost(record, name) for name in record["results"]}
    beside = "original", "control", "10x-direct", "30x-direct"
    *_, tenth, thirtieth = [lost.pop(name) for name in beside]
    yield from (min(lost.values()), tenth, thirtieth)


def _lost(record: Record, name: str) -> float:
    """Mean AUC on the test split, less the control's."""
    made, control = (record["results"][one] for one in (name, "control"))
    return mean(one["test"]["auc"] for one in made) - mean(one["test"]["auc"] for one in control)


def _speed(seeds: list[dict[str, Any]]) -> float:
    return mean(one["test"]["rows_per_second"]["64"] for one in seeds)
