from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from toy_scorer import FEATURES, ToyScorer

from embedcomp.errors import BadLog, BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.serving.client import Client
from embedcomp.serving.errors import CallFailed, Unreachable
from embedcomp.serving.predict import predict_log, render

ROWS = 230
SCHEMA = """
label = "click"
splits = { test = "test.parquet" }
[categorical]
user_id = { side = "user" }
city = { side = "user" }
genres = {}
tags = {}
[dense]
age = { side = "user" }
price = { transform = "log1p" }
"""


def predicted(target: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    with Client(target) as client:
        return predict_log(client, *arguments, **options)


def columns_of_log(rows: int = ROWS) -> dict[str, pa.Array]:
    rng = np.random.default_rng(0)
    lists = [list(rng.integers(0, 6, n)) if n < 4 else None for n in rng.integers(0, 5, rows)]
    return {
        "click": pa.array(rng.integers(0, 2, rows)),
        "user_id": pa.array(rng.choice([10, 20, 30, 40], rows)),
        "city": pa.array(rng.choice(["Basel", "Zürich", "Bern"], rows)),
        "genres": pa.array(lists, pa.list_(pa.int64())),
        "tags": pa.array([["a", "c"][: r % 3] for r in range(rows)], pa.list_(pa.string())),
        "age": pa.array(rng.normal(30, 10, rows), mask=rng.random(rows) < 0.1),
        "price": pa.array(rng.integers(0, 9, rows)),
    }


def write_log(folder: Path, columns: dict[str, pa.Array], schema: str = SCHEMA) -> ClickLog:
    pq.write_table(pa.table(columns), folder / "test.parquet", row_group_size=100)
    (folder / "schema.toml").write_text(schema)
    return ClickLog(str(folder))


@pytest.fixture
def log(tmp_path: Path) -> ClickLog:
    return write_log(tmp_path, columns_of_log())


def scored_in_process(log: ClickLog, scorer: ToyScorer) -> tuple[np.ndarray, np.ndarray]:
    batches = [batch for piece in log.pieces("test") for batch in log.read(piece)]
    scores = [scorer.score(batch.select(FEATURES.names)) for batch in batches]
    labels = [batch.column("click").to_numpy() for batch in batches]
    return np.concatenate(labels), np.concatenate(scores)


@pytest.mark.server
@pytest.mark.parametrize("in_flight", [1, 4])
def test_the_whole_split_is_scored_as_in_process(
    target: str, log: ClickLog, scorer: ToyScorer, in_flight: int
) -> None:
    found = predicted(target, log, "test", batch_rows=7, in_flight=in_flight)
    labels, scores = scored_in_process(log, scorer)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["logloss"] == pytest.approx(log_loss(labels, scores), abs=1e-7)
    assert (found["rows"], found["calls"], found["failed"]) == (ROWS, 15 + 15 + 5, 0)
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["rows_per_second"] > 0
    assert len(render(found).columns) == len(found)


@pytest.mark.server
def test_a_limit_takes_the_first_rows_across_row_groups(
    target: str, log: ClickLog, scorer: ToyScorer
) -> None:
    found = predicted(target, log, "test", 150, batch_rows=64)
    labels, scores = scored_in_process(log, scorer)
    assert found["rows"] == 150
    assert found["auc"] == pytest.approx(roc_auc_score(labels[:150], scores[:150]), abs=1e-12)


@pytest.mark.server
def test_labels_of_one_kind_have_no_auc(target: str, tmp_path: Path) -> None:
    columns = columns_of_log(5) | {"click": pa.array([1] * 5)}
    found = predicted(target, write_log(tmp_path, columns), "test")
    assert found["auc"] is None and math.isfinite(found["logloss"])
    assert render(found).row_count == 1


@pytest.mark.server
def test_a_log_without_the_models_features_is_refused_with_their_names(
    target: str, tmp_path: Path
) -> None:
    schema = SCHEMA.replace("tags = {}", "").replace("age = { side", "#")
    with pytest.raises(BadLog, match=r"lacks 2 of the 6 features .*'toy'.*: tags, age;"):
        predicted(target, write_log(tmp_path, columns_of_log(), schema), "test")


@pytest.mark.server
def test_a_call_that_fails_ends_the_run_and_drops_no_row(target: str, tmp_path: Path) -> None:
    columns = columns_of_log() | {"city": pa.array(range(ROWS))}
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT: feature 'city'"):
        predicted(target, write_log(tmp_path, columns), "test", batch_rows=10)


def test_no_server_is_one_sentence(log: ClickLog) -> None:
    with pytest.raises(Unreachable, match=r"no server answers at 127\.0\.0\.1:1 "):
        predicted("127.0.0.1:1", log, "test")


@pytest.mark.parametrize("change", [{"limit": 0}, {"batch_rows": 0}, {"in_flight": -1}])
def test_settings_out_of_range_are_refused(log: ClickLog, change: dict[str, int]) -> None:
    with pytest.raises(BadSettings, match=f"{next(iter(change))} is "):
        predicted("127.0.0.1:1", log, "test", **change)
