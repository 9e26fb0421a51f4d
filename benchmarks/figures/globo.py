"""Figures of `benchmarks.globo`: the command line on a large log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record, claim

MIB = 2**20
STEPS = {  # of the record: what is run, what is evaluated, and how the page calls it
    ("count", ""): "count",
    ("train", "original"): "train, 10 epochs",
    ("compress_10x", "10x"): "compress 10x, tuned; control",
    ("compress_30x", "30x"): "compress 30x, tuned",
    ("", "control"): "the control",
    ("compress_control_10x", "control_10x"): "the control at 10x, untuned",
    ("compress_control_30x", "control_30x"): "the control at 30x, untuned",
}


def steps(record: Record) -> list[str]:
    """What each step takes, and what its model scores on the test split."""
    head = ["step", "seconds", "peak memory", "test AUC", "log loss", "bytes"]
    made = record["results"]
    rows = [
        [
            words,
            *(_taken(made[step]) if step else ["", ""]),
            *(_scored(made[f"evaluate_{model}"]) if model else ["", "", ""]),
        ]
        for (step, model), words in STEPS.items()
    ]
    return table(head, rows)


def losses(record: Record) -> Iterator[float]:
    """What one more epoch gives; the tuned models against original and control; the control's."""
    auc = {
        name.removeprefix("evaluate_"): made["auc"]
        for name, made in record["results"].items()
        if name.startswith("evaluate_")
    }
    claim(auc["control"] > auc["original"], "one more epoch gives the control a higher AUC")
    yield auc["control"] - auc["original"]
    yield from (auc[budget] - auc["original"] for budget in ("10x", "30x"))
    yield from (auc["control"] - auc[budget] for budget in ("10x", "30x"))
    yield from (auc["control"] - auc[f"control_{budget}"] for budget in ("10x", "30x"))


def _taken(step: dict[str, Any]) -> list[str]:
    return [f"{step['seconds']:.1f}", f"{step['peak_bytes'] / MIB:,.0f} MiB"]


def _scored(made: dict[str, Any]) -> list[str]:
    return [f"{made['auc']:.5f}", f"{made['logloss']:.5f}", f"{made['bytes']['total']:,}"]
