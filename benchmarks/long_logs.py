"""Logs that grow: time and memory of counting, training, measuring and evaluating.

    python -m benchmarks.long_logs

A made-up log of many files, in which half of the rows have a user that is seen only once, and the
others one of 20,000. So there are half as many distinct ids as rows, while the vocabularies, of ids
that are seen ten times, and with them the model, stay as large as they are. Every step is a process
of its own, and its rows per second are those of the log's rows that it went over, by the wall time
of the whole process, start-up included; the trainer's own figure stands beside it. The longest logs
(`--counted`) are only counted, and on those longer than `--most-trained` no epoch is trained: their
model has drawn numbers, on which measuring and evaluating takes as long. A log is deleted once its
steps are done, and a step whose result is in the work folder is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from benchmarks import child
from benchmarks.script import WORK, command, console, parser
from benchmarks.steps import Steps
from embedcomp.recipes.settings import CompressSettings
from embedcomp.support.files import remove

FILE_ROWS = 200_000  # each file is one row group
USERS, ITEMS = 20_000, 10_000  # that are seen again and again
SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}
MODEL, MIN_COUNT, CHECKED = "deepfm", 10, 4
SHAPE = ("--model-set", "width=8", "--model-set", "hidden=[32]")
ONE_PASS = ("--set", "probes=false", "--set", "evaluations_per_epoch=1")
SCHEMA = """\
label = "clicked"

[splits]
train = "train/*.parquet"
valid = "valid/*.parquet"
test = "test/*.parquet"

[categorical]
user = { side = "user" }
hour = { side = "user" }
item = { side = "item" }

[dense]
price = { side = "item", transform = "log1p" }
"""


def write_log(folder: Path, rows: int) -> None:
    """Write a log of `rows` rows in all splits together."""
    known = np.random.default_rng(0)
    ids = known.integers(1 << 62, size=USERS)
    weights = {name: known.normal(0, 0.8, n) for name, n in (("user", USERS), ("item", ITEMS))}
    items = pa.array([f"item-{item:06d}" for item in range(ITEMS)])
    for place, (split, share) in enumerate(SHARES.items()):
        (folder / split).mkdir(parents=True, exist_ok=True)
        size = round(rows * share)
        for number, start in enumerate(range(0, size, FILE_ROWS)):
            random = np.random.default_rng([place, number])
            n = min(FILE_ROWS, size - start)
            table = _rows(n, random, ids, items, weights)
            pq.write_table(table, folder / split / f"{number:05d}.parquet", compression="lz4")
    (folder / "schema.toml").write_text(SCHEMA)


def _rows(
    n: int,
    random: np.random.Generator,
    ids: np.ndarray,
    items: pa.Array,
    weights: dict[str, np.ndarray],
) -> pa.Table:
    user, item = random.integers(USERS, size=n), random.integers(ITEMS, size=n)
    once, price = random.random(n) < 0.5, random.lognormal(2.5, 1.0, n)
    logits = -1 + np.where(once, 0, weights["user"][user]) + weights["item"][item]
    logits -= 0.3 * (np.log1p(price) - 2.6)
    return pa.table(
        {
            "clicked": (random.random(n) < 1 / (1 + np.exp(-logits))).astype(np.int8),
            "user": np.where(once, random.integers(1 << 62, size=n), ids[user]),
            "hour": random.integers(24, size=n),
            "item": items.take(pa.array(item)),
            "price": price.astype(np.float32),
        }
    )


def run_all(options: argparse.Namespace, steps: Steps) -> dict[str, dict[str, Any]]:
    """What each step took, by rows of the log."""
    found: dict[str, dict[str, Any]] = {}
    for rows in [*options.rows, *options.counted]:
        log = steps.folder / f"log-{rows}"
        kinds = ["count"] if rows in options.counted else ["count", "train", "measure", "evaluate"]
        made = {}
        for kind in kinds:
            epochs = int(rows <= options.most_trained)
            step = partial(_step, kind, log, rows, options.memory, epochs)
            made[kind] = steps.run(f"{kind}-{rows}", step)
        remove(log)
        found[str(rows)] = made
    return found


def _step(kind: str, log: Path, rows: int, memory: str, epochs: int) -> dict[str, Any]:
    """One command in a process of its own."""
    if not (log / "schema.toml").exists():
        console.print(f"writing {rows:,} rows ...")
        write_log(log, rows)
    console.print(f"{kind}, {rows:,} rows ...")
    output = log.parent / f"{kind}-{rows}.output.json"
    arguments = _arguments(kind, log, memory, epochs)
    done = child.run(["embedcomp.cli.main", *arguments, "--json", str(output)], shown=True)
    told = json.loads(output.read_text())
    over = _rows_of(kind, rows)
    return {
        "seconds": done.seconds,
        "peak_bytes": done.peak_bytes,
        "rows": over,
        "rows_per_second": over / done.seconds,
        **_facts(kind, told),
        **({"epochs": epochs} if kind == "train" else {}),
    }


def _arguments(kind: str, log: Path, memory: str, epochs: int) -> Sequence[str]:
    model = log / "model"
    if kind == "count":
        return ["log", "profile", str(log), "--count-memory", memory]
    if kind == "train":
        how = ["--epochs", str(epochs), "--min-count", str(MIN_COUNT), *SHAPE, *ONE_PASS]
        where = ["--out", str(model), "--count-memory", memory]
        return ["train", str(log), "--model", MODEL, *how, *where]
    if kind == "measure":
        return ["measure", str(model), "--log", str(log), "--options", str(CHECKED)]
    return ["evaluate", str(model), "--log", str(log), "--split", "test"]


def _rows_of(kind: str, rows: int) -> int:
    """Rows of the log that a step goes over; those of training are read twice, to be counted."""
    if kind == "measure":
        return min(round(rows * SHARES["train"]), CompressSettings(budget="1x").measure_rows)
    return round(rows * SHARES["test" if kind == "evaluate" else "train"])


def _facts(kind: str, told: dict[str, Any]) -> dict[str, Any]:
    """What of a command's JSON belongs into the result."""
    if kind == "count":
        return {"distinct": {name: one["distinct"] for name, one in told["categorical"].items()}}
    if kind == "train":
        speeds = [entry.get("rows_per_second", 0) for entry in told["history"]]
        speed = {"trainer_rows_per_second": median(speeds)} if speeds else {}
        return {"bytes": told["bytes"]["total"], **speed}
    return {"auc": told["auc"]} if kind == "evaluate" else {}


def render(found: dict[str, dict[str, Any]]) -> Table:
    table = Table("rows", "step")
    for column in ("seconds", "rows/s", "peak memory"):
        table.add_column(column, justify="right")
    for rows, made in found.items():
        for kind, taken in made.items():
            table.add_row(
                f"{int(rows):,}",
                kind,
                f"{taken['seconds']:,.1f}",
                f"{taken['rows_per_second']:,.0f}",
                f"{taken['peak_bytes'] / 2**20:,.0f} MiB",
            )
    return table


def main() -> None:
    options = parser(__doc__, data=False)
    options.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    options.add_argument("--counted", type=int, nargs="*", default=[100_000_000])
    options.add_argument("--most-trained", type=int, default=10_000_000, help="rows, for an epoch")
    options.add_argument("--memory", default="256MiB", help="of counting")
    options.add_argument("--work", type=Path, default=WORK, help="folder for logs and results")
    given = options.parse_args()
    settings = {
        name: getattr(given, name) for name in ("rows", "counted", "most_trained", "memory")
    }
    settings |= {"model": MODEL, "min_count": MIN_COUNT, "file_rows": FILE_ROWS}
    steps = Steps(given.work / "long_logs", settings)
    found = run_all(given, steps)
    console.print(render(found))
    told = {"name": "made-up", "rows": [*given.rows, *given.counted]}
    print(
        steps.record(
            "long_logs",
            data=told,
            settings=settings,
            seeds=[0],
            results=found,
            folder=given.results,
        )
    )


if __name__ == "__main__":
    command(main)
