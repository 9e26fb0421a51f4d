"""Quality, bytes and speed of a model, in the form that every command prints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table
from torch import nn

from embedcomp.artifact.artifact import disk_bytes
from embedcomp.log.batches import read_rows
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.log.rows import Rows
from embedcomp.modules.sizes import model_bytes
from embedcomp.scorer.backend import Backend
from embedcomp.scorer.by_torch import in_memory
from embedcomp.train.quality import quality
from embedcomp.train.tables import fast_tables

SPEED_BATCHES = (1, 64, 1024)
# of the bytes, as the table has them
PARTS = {"total": "tensors", "vocabularies": "vocab.", "program": "program", "disk": "on disk"}
SPEED_SECONDS = 0.5  # measured per batch size
AS_STORED = 0.1  # by which resident bytes may be off those of the tensors and not be shown


def evaluate(
    model: nn.Module, log: ClickLog, features: Features, split: str, folder: Path | None = None
) -> dict[str, Any]:
    """Everything `embedcomp evaluate` reports: AUC, log loss, calibration, bytes, speed.

    Args:
        folder: where the model is stored, for the bytes on disk; None: nowhere.
    """
    pieces = log.pieces(split)
    with fast_tables(model):
        found = quality(model, log, features, pieces)
    return {**found.to_dict(), **size_and_speed(model, log, features, split, folder)}


def size_and_speed(
    model: nn.Module, log: ClickLog, features: Features, split: str, folder: Path | None
) -> dict[str, Any]:
    """Bytes of a model in its tensors, in a scorer's memory and on disk, and rows a second."""
    nowhere = {"vocabularies": 0, "program": 0, "disk": 0}
    backend = in_memory(model, features)
    resident = {"resident": sum(backend.resident.values())}
    sizes = {**model_bytes(model), **resident, **(disk_bytes(folder) if folder else nowhere)}
    return {"bytes": sizes, "rows_per_second": _speed(backend, log, features, split)}


def _speed(backend: Backend, log: ClickLog, features: Features, split: str) -> dict[str, float]:
    """Rows a second of the model as it is served (ids already mapped), per batch size: median."""
    largest = max(SPEED_BATCHES)
    rows = Rows.concatenate(list(islice(read_rows(log, features, log.pieces(split)), 1)))
    repeated = rows.take(np.arange(largest) % len(rows))
    return {
        str(n): round(_rows_per_second(backend, repeated, features, n), 1) for n in SPEED_BATCHES
    }


def _rows_per_second(backend: Backend, rows: Rows, features: Features, batch_rows: int) -> float:
    starts = range(0, len(rows), batch_rows)
    batches = [rows.take(np.arange(start, start + batch_rows)) for start in starts[:64]]
    seconds: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SPEED_SECONDS or len(seconds) < 5:
        for batch in batches:
            start = time.perf_counter()
            backend.score_encoded(batch, features)
            seconds.append(time.perf_counter() - start)
    return batch_rows / median(seconds)


def render(found: dict[str, dict[str, Any]]) -> Table:
    """Evaluations by name as one table; sizes are relative to the first."""
    parts = PARTS
    if any(_unlike_stored(result["bytes"]) for result in found.values()):
        parts = {"total": PARTS["total"], "resident": "resident", **PARTS}
    table = Table("model", "AUC", "log loss", "calibration", *parts.values())
    table.add_column("size", justify="right")
    for batch_rows in SPEED_BATCHES:
        table.add_column(f"rows/s at {batch_rows}", justify="right")
    first_bytes = next(iter(found.values()))["bytes"]["total"]
    for name, result in found.items():
        sizes = result["bytes"]
        table.add_row(
            name,
            f"{result['auc']:.5f}",
            f"{result['logloss']:.5f}",
            f"{result['calibration']:.3f}",
            *(f"{sizes[part]:,}" for part in parts),
            f"1/{first_bytes / sizes['total']:.1f}",
            *(f"{result['rows_per_second'][str(n)]:,.0f}" for n in SPEED_BATCHES),
        )
    return table


def _unlike_stored(sizes: Mapping[str, int]) -> bool:
    """Whether a scorer has far more or less in its memory than the tensors that are stored."""
    return abs(sizes["resident"] - sizes["total"]) > AS_STORED * sizes["total"]
