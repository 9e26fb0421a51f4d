"""Results written by hand, with figures that are easy to add up."""

from __future__ import annotations

from typing import Any

from embedcomp.compare.results import Record


def record(method: str, seed: int, auc: float | None, budget: str = "", **changes: Any) -> Record:
    """A result; without an AUC it could not be made."""
    whole = {"total": 1000, "tables": 900, "dense": 100, "disk": 1500}
    given: dict[str, Any] = {
        "key": f"{method} {budget} {seed} {changes.get('tune_epochs', 0)}",
        "setup": "s",
        "data": {"name": "clicks", "rows": {"test": 50}, "fingerprint": "f"},
        "model": "dcnv2",
        "method": method,
        "budget": budget,
        "seed": seed,
        "tune_epochs": 0,
        "split": "test",
        "settings": {},
        "versions": {"embedcomp": "0.1.0 abc"},
        "machine": {"cpu": "A CPU", "cores": 2},
        "date": "2026-01-02T03:04:05+00:00",
        "seconds": {"plan": 1.0},
    }
    if auc is None:
        given["reason"] = "the budget is too small"
    else:
        sizes = {part: size // 5 for part, size in whole.items()} if budget else whole
        given |= {"auc": auc, "logloss": 0.5, "calibration": 1.0, "rows": 50, "bytes": sizes}
        given["rows_per_second"] = {"1": 10.0, "64": 20.0, "1024": 60.0 if budget else 40.0}
    return Record(**{**given, **changes})


def comparison() -> list[Record]:
    """Two seeds, one budget: planned 0.79, 0.83; svd 0.80, 0.81; row_int8 at one seed only."""
    return [
        record("original", 0, 0.80),
        record("original", 1, 0.82),
        record("planned", 0, 0.79, "5x", settings={"methods": ["row_int8", "svd"]}),
        record("planned", 1, 0.83, "5x", settings={"methods": ["row_int8", "svd"]}),
        record("svd", 0, 0.80, "5x"),
        record("svd", 1, 0.81, "5x"),
        record("row_int8", 0, 0.99, "5x"),
        record("row_int8", 1, None, "5x"),
    ]
