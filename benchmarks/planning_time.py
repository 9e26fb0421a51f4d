"""How long a user waits for a plan: `embedcomp compress`, untuned, on idle cores and on busy ones.

    python -m benchmarks.planning_time --log kuairand

The command is timed whole, with imports, measuring, planning, encoding, and the check on validation
rows. Further budgets are planned in one process, as `embedcomp frontier` does. Then all of it again
beside a process a core that does nothing but count, so that half of each core is free.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from rich.table import Table

from benchmarks import child, result
from benchmarks.auc_bound import trained
from benchmarks.script import WORK, command, console, open_log, parser
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.settings import CompressSettings

CORES = os.cpu_count() or 1


@contextmanager
def busy() -> Iterator[None]:
    """A process a core that counts as long as the block runs."""
    loops = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(CORES)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def commanded(opened: Artifact, log: ClickLog, budget: str, names: str) -> dict[str, float]:
    """Seconds of the whole command, and its largest resident memory."""
    with TemporaryDirectory() as folder:
        words = ["embedcomp", "compress", str(opened.folder), "--log", log.path, "--budget", budget]
        done = child.run([*words, "--methods", names, "--out", f"{folder}/made"])
    return {"seconds": round(done.seconds, 2), "peak_bytes": done.peak_bytes}


def further(opened: Artifact, log: ClickLog, budgets: list[str]) -> dict[str, float]:
    """Seconds of planning for each budget, one after the other in one process."""
    found = {}
    original = Original.measure(opened, log, CompressSettings(budget=budgets[0]))
    for budget in budgets:
        began = perf_counter()
        plan = original.plan(CompressSettings(budget=budget))
        assert not isinstance(plan, str), plan
        found[budget] = round(perf_counter() - began, 2)
    return found


def measured(opened: Artifact, log: ClickLog, options: argparse.Namespace) -> dict[str, Any]:
    budget, mixes = options.budgets[0], ["default", *(["all"] if options.all else [])]
    rounds = [
        {mix: commanded(opened, log, budget, mix.replace("default", "")) for mix in mixes}
        for _ in range(options.rounds)
    ]
    found: dict[str, Any] = {"rounds": rounds, "plans": further(opened, log, options.budgets)}
    for mix in rounds[0]:
        found[f"{mix}_seconds"] = median(one[mix]["seconds"] for one in rounds)
    return found


def rendered(found: dict[str, dict[str, Any]]) -> Table:
    table = Table("cores", "compress", "with all methods", "plans of further budgets")
    for cores, one in found.items():
        every = one.get("all_seconds")
        plans = ", ".join(f"{budget} {seconds:.1f} s" for budget, seconds in one["plans"].items())
        table.add_row(cores, f"{one['default_seconds']:.1f} s", every and f"{every:.1f} s", plans)
    return table


def main() -> None:
    options = _options()
    log = open_log(options.data, options.log)
    folder = options.work / f"planning-time-{options.log}"
    opened = trained(log, options, options.trained or folder / "model")
    found = {}
    for cores, around in {"idle": nullcontext, "busy": busy}.items():
        with around():
            found[cores] = measured(opened, log, options)
        console.print(rendered(found))
    file = result.write(
        f"planning_time-{options.log}",
        data={"name": options.log, "rows": {split: log.rows(split) for split in log.schema.splits}},
        settings={
            "model": options.model,
            "min_count": options.min_count,
            "train": options.set,
            "budgets": options.budgets,
            "cores": CORES,
        },
        seeds=[0],
        results=found,
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--log", default="kuairand", help="its folder's name")
    made.add_argument("--model", default="dcnv2", help="of embedcomp")
    made.add_argument("--min-count", type=int, default=2, help="ids seen fewer times share a row")
    made.add_argument("--set", action="append", default=[], help="a setting of the trainer")
    made.add_argument("--budgets", nargs="+", default=["20x", "10x", "50x", "30x"])
    made.add_argument("--rounds", type=int, default=3, help="of the whole command")
    made.add_argument("--all", action="store_true", help="with all methods too")
    made.add_argument("--trained", type=Path, help="folder of an original that is there already")
    made.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    return made.parse_args()


if __name__ == "__main__":
    command(main)
