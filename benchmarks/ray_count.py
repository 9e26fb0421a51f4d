"""Counting a log by plain Ray tasks and by Ray Data: `python -m benchmarks.ray_count`.

Both end with the same value counts of every categorical column. The job uses the faster one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import pyarrow as pa
import ray

from benchmarks.result import over_seeds, write
from benchmarks.script import command, open_log, parser
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.counts import IdCounts, LogCounts, count
from embedcomp.pipelines import shards
from embedcomp.pipelines.cluster import connected
from embedcomp.pipelines.shards import Shards

Totals = dict[str, int]  # by column: values counted


def by_tasks(log: ClickLog, pieces: list[Piece]) -> Totals:
    """As the job counts: shards of row groups, one task each."""
    found = shards.total(partial(count, log), pieces, Shards(), LogCounts.empty(log))
    return {name: int(ids.ranked().counts.sum()) for name, ids in found.ids.items()}


def by_ray_data(log: ClickLog, pieces: list[Piece]) -> Totals:
    """Ray Data reads the files; each block is counted where it lies, and the counts are added."""
    columns = list(log.schema.categorical)
    files = sorted({piece.file for piece in pieces})
    blocks = ray.data.read_parquet(files, columns=columns)
    work = partial(_count_block, log.types)
    counted = blocks.map_batches(work, batch_format="pyarrow", batch_size=None)
    total = _empty(log.types, columns)
    for row in counted.iter_rows():
        for name in columns:
            total[name] += ray.cloudpickle.loads(row[name])
    return {name: int(ids.ranked().counts.sum()) for name, ids in total.items()}


def _count_block(types: dict[str, pa.DataType], block: pa.Table) -> pa.Table:
    counts = _empty(types, block.column_names)
    for name, ids in counts.items():
        ids.add_column(block[name].combine_chunks().cast(types[name]))
    return pa.table({name: [ray.cloudpickle.dumps(ids)] for name, ids in counts.items()})


def _empty(types: dict[str, pa.DataType], columns: list[str]) -> dict[str, IdCounts]:
    kinds = {name: types[name] for name in columns}
    return {n: IdCounts(k.value_type if pa.types.is_list(k) else k) for n, k in kinds.items()}


def timed(count_all: Callable[[ClickLog, list[Piece]], Totals], log: ClickLog) -> list[float]:
    """Seconds of three runs; the first starts processes, as a job's does."""
    seconds, totals = [], []
    pieces = log.pieces("train")
    for _ in range(3):
        began = time.perf_counter()
        totals.append(count_all(log, pieces))
        seconds.append(round(time.perf_counter() - began, 2))
    assert totals[0] == totals[1] == totals[2]
    return seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--log", default="movielens_1m", help="folder in --data")
    given = options.parse_args()
    log = open_log(given.data, given.log)
    pieces = log.pieces("train")
    with connected():
        assert by_tasks(log, pieces) == by_ray_data(log, pieces)  # which also warms the file cache
        found = {"tasks": timed(by_tasks, log), "ray_data": timed(by_ray_data, log)}
    for name, seconds in found.items():
        print(f"{name}: {median(seconds):.2f} s (runs {seconds})")
    written = write(
        f"ray_count_{given.log}",
        data={"log": given.log, "rows": log.rows("train"), "pieces": len(pieces)},
        settings={"runs": 3, "ray": ray.__version__},
        seeds=[],
        results={name: {"seconds": over_seeds(seconds)} for name, seconds in found.items()},
        folder=given.results,
    )
    print(written)


if __name__ == "__main__":
    command(main)
