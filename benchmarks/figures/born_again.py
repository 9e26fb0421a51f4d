"""Figures of `benchmarks.born_again`: the low-rank paper's setting, against what stands beside."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from benchmarks.born_again import BESIDE
from benchmarks.figures.markdown import each, faster, table
from benchmarks.figures.record import Record, claim
from benchmarks.result import over_seeds

KINDS = ("activated", "exact")


def forms(*records: Record) -> list[str]:
    """Each model's forms: AUC against the tuned control, and speed against the original."""
    head = ["log", "model", "form", "bytes", "AUC", "AUC - control (each seed)", "log loss"]
    head += ["rows/s against the original at 1 / 64 / 1,024"]
    rows = []
    for record in records:
        for model in record["settings"]["model"]:
            made = {name: _seeds(record, model, name) for name in _names(record)}
            for name, seeds in made.items():
                about = [record["data"]["name"], model, name]
                rows.append([*about, *_cells(seeds, made["control"], made["original"])])
    return table(head, rows, text=(0, 1, 2))


def _names(record: Record) -> list[str]:
    return [*BESIDE, *(f"{ratio}-{kind}" for ratio in _ratios(record) for kind in KINDS)]


def _ratios(record: Record) -> list[str]:
    return [f"{ratio:g}x" for ratio in record["settings"]["ratios"]]


def _seeds(record: Record, model: str, name: str) -> list[dict[str, Any]]:
    return [record["results"][f"{model}-{name}-{seed}"] for seed in record["seeds"]]


def _cells(
    seeds: list[dict[str, Any]], controls: list[dict[str, Any]], originals: list[dict[str, Any]]
) -> list[str]:
    if any("reason" in one for one in seeds):
        return ["-"] * 5
    lost = [one["auc"] - beside["auc"] for one, beside in zip(seeds, controls, strict=True)]
    times = [faster(_speed(seeds, rows) / _speed(originals, rows)) for rows in ("1", "64", "1024")]
    return [
        f"{max(one['bytes']['total'] for one in seeds):,}",
        f"{mean(one['auc'] for one in seeds):.5f}",
        each(over_seeds(lost)),
        f"{mean(one['logloss'] for one in seeds):.5f}",
        " / ".join(times),
    ]


def _speed(seeds: list[dict[str, Any]], rows: str) -> float:
    return mean(one["rows_per_second"][rows] for one in seeds)


def said(record: Record) -> Iterator[float]:
    """Of how many cells the activated form is above the control; of how many the exact one is
    above the activated; how many cells there are."""
    cells = [(model, ratio) for model in record["settings"]["model"] for ratio in _ratios(record)]
    gains = {
        (model, ratio, kind): _gain(record, model, f"{ratio}-{kind}")
        for model, ratio in cells
        for kind in KINDS
    }
    above = [cell for cell in cells if gains[*cell, "activated"] > 0]
    ahead = [cell for cell in cells if gains[*cell, "exact"] > gains[*cell, "activated"]]
    better = {model for model, ratio in cells if gains[model, ratio, "exact"] > 0}
    claim(better == {"deepfm", "dlrm", "fibinet", "nfm"}, "exact forms beat these controls")
    behind = [
        cell for cell in cells if 0 < gains[*cell, "exact"] < _gain(record, cell[0], "born_again")
    ]
    known = [("dlrm", "3x"), ("fibinet", "3x"), ("fibinet", "5x")]
    claim(behind == known, "a born-again model is ahead on fibinet, and of dlrm at 3x")
    yield from (len(above), len(cells), len(ahead), len(cells))


def _gain(record: Record, model: str, name: str) -> float:
    """Mean AUC less the control's."""
    made, control = (_seeds(record, model, one) for one in (name, "control"))
    return mean(one["auc"] for one in made) - mean(one["auc"] for one in control)
