"""One model trained by one worker and by several: `python -m benchmarks.workers`.

On a click log whole runs at a fixed schedule are compared, and on a made-up model with large tables
steps alone. Beside embedcomp's workers, which share the rows of all tables, there are the workers
that it had before, which held all tables each and gathered gradients by pickle, and torchrec's
DistributedModelParallel as its planner shards the tables, with fused row-wise Adagrad.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import child
from benchmarks.result import over_seeds
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.steps import Steps
from embedcomp.support.lazy import torch

NO_L2 = "two, rowwise_adagrad without L2, half a batch each"  # what torchrec's kernels are like
# by name: workers, who trains, the optimizer of tables, and of what part a worker's batch is
Contender = tuple[int, str, str, float]
ON_LOG: dict[str, Contender] = {
    "one": (1, "embedcomp", "adam", 1.0),
    "two": (2, "embedcomp", "adam", 1.0),
    "two, half a batch each": (2, "embedcomp", "adam", 0.5),
    "two, rowwise_adagrad, half a batch each": (2, "embedcomp", "rowwise_adagrad", 0.5),
    NO_L2: (2, "embedcomp", "rowwise_adagrad", 0.5),
    "two by torchrec, half a batch each": (2, "torchrec", "rowwise_adagrad", 0.5),
}
ON_LARGE: dict[str, Contender] = {
    "one": (1, "embedcomp", "adam", 1.0),
    "two": (2, "embedcomp", "adam", 1.0),
    "two as before": (2, "replicated", "adam", 1.0),
    "one, rowwise_adagrad": (1, "embedcomp", "rowwise_adagrad", 1.0),
    "two, rowwise_adagrad": (2, "embedcomp", "rowwise_adagrad", 1.0),
    "two by torchrec": (2, "torchrec", "rowwise_adagrad", 1.0),
}
FIGURES = (
    "rows_per_second",
    "cpu_seconds_a_million_rows",
    "held_bytes",
    "peak_bytes",
    "sent_bytes_a_step",
)


def spec(contender: Contender, given: Namespace, **more: Any) -> dict[str, Any]:
    workers, by, optimizer, part = contender
    batch = max(1, int(given.batch_rows * part))
    rate = given.adagrad_rate if optimizer == "rowwise_adagrad" else given.rate
    told = {"workers": workers, "by": by, "optimizer": optimizer, "batch_rows": batch, "rate": rate}
    return {**told, **more}


def measured(spec: dict[str, Any]) -> dict[str, Any]:
    done = child.run(["benchmarks.workers_one", json.dumps(spec)])
    found = done.answer
    console.print(f"{spec['workers']} by {spec['by']}, {spec['optimizer']}: {found}")
    return found


def on_log(name: str, contender: Contender, given: Namespace, log: str, steps: Steps) -> Any:
    found = []
    for seed in range(given.seeds):
        more = {"log": log, "epochs": given.epochs, "seed": seed, "model": given.model}
        more |= {"l2": 0.0} if name == NO_L2 else {}
        asked = spec(contender, given, **more, min_count=given.min_count)
        found.append(steps.run(f"log/{name}/{seed}", lambda asked=asked: measured(asked)))
    return {figure: over_seeds([one[figure] for one in found]) for figure in ("auc", *FIGURES)}


def on_large(given: Namespace, steps: Steps) -> dict[str, Any]:
    """Contenders take turns, so that what else the machine does hits all of them alike."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ON_LARGE}
    for turn in range(given.rounds):
        for name, contender in ON_LARGE.items():
            more = {"rows": given.rows, "tables": given.tables, "steps": given.steps, "seed": turn}
            asked = spec(contender, given, **more)
            run = steps.run(f"large/{name}/{turn}", lambda asked=asked: measured(asked))
            found[name].append(run)
    return {
        name: {figure: over_seeds([run[figure] for run in runs]) for figure in FIGURES}
        for name, runs in found.items()
    }


def lines(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    for part, contenders in results.items():
        for name, found in contenders.items():
            told = {figure: f"{found[figure]['mean']:,.4g}" for figure in found}
            yield f"{part} {name}: {told}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--log", default="movielens_1m", help="folder in --data")
    options.add_argument("--model", default="dcnv2")
    options.add_argument("--min-count", type=int, default=2)
    options.add_argument("--only", nargs="+", default=[*ON_LOG], help="contenders on the log")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--batch-rows", type=int, default=4096, help="of a worker")
    options.add_argument("--rate", type=float, default=1e-3, help="of tables, by Adam")
    options.add_argument("--adagrad-rate", type=float, default=0.02, help="of tables")
    options.add_argument("--rows", type=int, default=2_000_000, help="of the large tables")
    options.add_argument("--tables", type=int, default=8)
    options.add_argument("--steps", type=int, default=60, help="on large tables")
    options.add_argument("--rounds", type=int, default=2, help="on large tables; 0: none of it")
    options.add_argument("--work", type=Path, default=WORK)
    given = options.parse_args()
    log = open_log(given.data, given.log)
    settings = {n: v for n, v in vars(given).items() if n not in ("results", "data", "work", "log")}
    steps = Steps(given.work / f"workers-{given.log}", settings)
    results = {"large": on_large(given, steps)} if given.rounds else {}
    results["log"] = {n: on_log(n, ON_LOG[n], given, log.path, steps) for n in given.only}
    for line in lines(results):
        print(line)
    written = steps.record(
        f"workers-{given.log}",
        data={"log": given.log, "rows": log.rows("train")},
        settings={**settings, "torch": torch.__version__},
        seeds=[*range(given.seeds)],
        results=results,
        folder=given.results,
    )
    print(written)


if __name__ == "__main__":
    command(main)
