"""Figures of `benchmarks.defaults`: the trainer's defaults and those before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.figures.markdown import table
from benchmarks.figures.record import Record

HEAD = ("log", "settings", "seeds", "AUC, validation", "AUC, test", "log loss, test", "seconds")
TOLD = {
    "before": "L2 of 6,000, an evaluation an epoch, cut on a plateau alone",
    "defaults": "defaults",
}


def trained(*records: Record) -> list[str]:
    """Quality and seconds of each log's runs."""
    rows = [
        [
            record["data"]["name"],
            _settings(name, record),
            str(len(record["seeds"])),
            *(_spread(made[figure], 5) for figure in ("valid_auc", "test_auc", "test_logloss")),
            _spread(made["seconds"], 0),
        ]
        for record in records
        for name, made in record["results"].items()
    ]
    return table([*HEAD], rows)


def _settings(name: str, record: Record) -> str:
    whole_batches = name == "before" and "batch_rows=4096" in record["settings"]["before"]
    return ("batches of 4,096, " if whole_batches else "") + TOLD[name]


def lost(record: Record) -> Iterator[float]:
    """Mean test AUC that the defaults end below the settings before them."""
    found = record["results"]
    yield found["before"]["test_auc"]["mean"] - found["defaults"]["test_auc"]["mean"]


def _spread(found: dict[str, Any], digits: int) -> str:
    mean = f"{found['mean']:,.{digits}f}"
    return mean if found["std"] is None else f"{mean} ± {found['std']:,.{digits}f}"
