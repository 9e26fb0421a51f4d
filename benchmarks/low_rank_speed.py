"""Low-rank compression of one large table against numpy.linalg.svd and torch.svd_lowrank.

    python -m benchmarks.low_rank_speed

The table is made up: Zipf counts, a falling spectrum, and other directions for frequent ids than
for rare ones, as trained tables have. The contenders take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import child, result
from benchmarks.low_rank_one import CHUNK_ROWS, CONTENDERS
from benchmarks.script import command, console, parser

BASELINE = "numpy_svd"
ZIPF_EXPONENT = 0.9
LOOKUPS_PER_ROW = 25
NOISE = 0.02  # of every value, beside a first direction of 1


def main() -> None:
    options = _options()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), options.rows, options.dim, options.seed)
        for _ in range(options.rounds):
            for name, made in runs.items():
                arguments = [name, scratch, str(options.rank), str(options.threads)]
                done = child.run(["benchmarks.low_rank_one", *arguments], threads=options.threads)
                made.append(done.answer)
    found = _summary(runs)
    console.print(_render(found))
    file = result.write(
        "low_rank_speed",
        data={"made_up": True, "rows": options.rows, "dim": options.dim, "zipf": ZIPF_EXPONENT},
        settings={name: getattr(options, name) for name in ("rank", "threads", "rounds")}
        | {"storage": "float32"},
        seeds=[options.seed],
        results=found,
        folder=options.results,
    )
    print(file)


def make(folder: Path, rows: int, dim: int, seed: int) -> None:
    """Write table.npy float32 [rows, dim] and counts.npy float64 [rows], frequent rows first."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    counts = np.maximum(1.0, np.floor(weights * (LOOKUPS_PER_ROW * rows / weights.sum())))
    np.save(folder / "counts.npy", counts)
    frequent, rare = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(2))
    spectrum = 1 / np.arange(1, dim + 1)
    mean = rng.normal(0, 0.1, dim)
    shares = (np.log(counts) / np.log(counts[0]))[:, None]  # 1: the most frequent row
    table = np.lib.format.open_memmap(folder / "table.npy", "w+", np.float32, (rows, dim))
    for start in range(0, rows, CHUNK_ROWS):
        share = shares[start : start + CHUNK_ROWS]
        size = (len(share), dim)
        values = share * ((rng.normal(size=size) * spectrum) @ frequent)
        values += (1 - share) * ((rng.normal(size=size) * spectrum) @ rare)
        table[start : start + CHUNK_ROWS] = values + mean + rng.normal(0, NOISE, size)
    table.flush()


def _summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    baseline = median(run["seconds"] for run in runs[BASELINE])
    for name, made in runs.items():
        seconds = median(run["seconds"] for run in made)
        found[name] = {
            "what": CONTENDERS[name].__doc__,
            "seconds": seconds,
            "times_faster_than_numpy": baseline / seconds,
            "peak_bytes": max(run["peak_bytes"] for run in made),
            "added_bytes": max(run["added_bytes"] for run in made),
            "error": made[0]["error"],
            "weighted_error": made[0]["weighted_error"],
            "runs": made,
        }
    return found


def _render(found: dict[str, Any]) -> Table:
    table = Table("contender")
    for column in ("seconds", "against numpy", "peak", "added", "error", "weighted by counts"):
        table.add_column(column, justify="right")
    for name, made in found.items():
        table.add_row(
            name,
            f"{made['seconds']:.2f}",
            f"{made['times_faster_than_numpy']:.1f}x",
            f"{made['peak_bytes'] / 2**20:,.0f} MiB",
            f"{made['added_bytes'] / 2**20:,.0f} MiB",
            f"{made['error']:.5f}",
            f"{made['weighted_error']:.5f}",
        )
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__, data=False)
    options.add_argument("--rows", type=int, default=4_000_000)
    options.add_argument("--dim", type=int, default=64)
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


if __name__ == "__main__":
    command(main)
