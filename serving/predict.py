"""Real rows of a click log through a server: quality, throughput and latency over the wire."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table
from sklearn.metrics import log_loss, roc_auc_score

from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.serving.client import Client
from embedcomp.serving.prepared import batches, names_in


@dataclass(frozen=True)
class Answer:
    """One call's scores and labels, float32 [B] each, and how long the call took."""

    scores: np.ndarray
    labels: np.ndarray
    seconds: float


def predict_log(
    client: Client,
    log: ClickLog,
    split: str,
    limit: int | None = None,
    *,
    batch_rows: int = 256,
    in_flight: int = 4,
) -> dict[str, Any]:
    """Send the rows of a split to a server, in order, and sum up its answers.

    Every row gets a score or the whole run ends with an error; none is left out.

    Args:
        limit: rows at most; None sends all.
        batch_rows: candidates of a call.
        in_flight: calls at a time.

    Returns:
        auc (None when every label is the same), logloss, rows, rows_per_second, p50_ms, p90_ms and
        p99_ms of a call, calls, failed (calls; always 0, since one that fails ends the run).

    Raises:
        BadLog: the split cannot be read, or lacks a feature of the model.
        BadSettings: limit, batch_rows or in_flight is not positive.
        Unreachable, CallFailed, BadRequest: as Client.predict, at the first call that fails.
    """
    for name, value in (("limit", limit), ("batch_rows", batch_rows), ("in_flight", in_flight)):
        if value is not None and value < 1:
            raise BadSettings(f"{name} is {value}, but must be 1 or more")
    features = names_in(log, client.metadata(), client.target)
    sent = batches(log, split, limit, batch_rows)
    began = time.perf_counter()
    answers = list(_answers(client, sent, log.schema.label, features, in_flight))
    return _summary(answers, time.perf_counter() - began)


def _answers(
    client: Client,
    sent: Iterator[pa.RecordBatch],
    label: str,
    features: list[str],
    in_flight: int,
) -> Iterator[Answer]:
    """The server's answers in the batches' order; memory is bounded by the calls in flight."""

    def ask(batch: pa.RecordBatch) -> Answer:
        began = time.perf_counter()
        scores = client.predict(batch.select(features))
        seconds = time.perf_counter() - began
        return Answer(scores, batch.column(label).to_numpy(), seconds)

    pool = ThreadPoolExecutor(in_flight)
    waiting: deque[Future[Answer]] = deque()
    try:
        for batch in sent:
            waiting.append(pool.submit(ask, batch))
            if len(waiting) > 2 * in_flight:  # enough that no thread waits for the oldest call
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _summary(answers: list[Answer], wall_s: float) -> dict[str, Any]:
    scores = np.concatenate([a.scores for a in answers]).astype(np.float64)
    labels = np.concatenate([a.labels for a in answers])
    assert len(scores) == len(labels)
    p50, p90, p99 = np.percentile([1000 * a.seconds for a in answers], [50, 90, 99])
    return {
        "auc": float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None,
        "logloss": float(log_loss(labels, scores, labels=[0.0, 1.0])),
        "rows": len(labels),
        "rows_per_second": len(labels) / wall_s,
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "calls": len(answers),
        "failed": 0,
    }


def render(found: dict[str, Any]) -> Table:
    """The result of predict_log as a table of one row."""
    table = Table(*found)
    table.add_row(*(_text(value) for value in found.values()))
    return table


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
