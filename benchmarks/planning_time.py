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
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from rich.table import Table

from benchmarks import child, one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.settings import CompressSettings

CORES = os.cpu_count() or 1


# Counts as long as the process that started it is there, however that one ends.
_COUNT = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@contextmanager
def busy() -> Iterator[None]:
    """A process a core that counts as long as the block runs."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", _COUNT]) for _ in range(CORES)]
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
    one = OneModel("planning_time", options, {"budgets": options.budgets, "cores": CORES})
    found = {}
    for cores, around in {"idle": nullcontext, "busy": busy}.items():
        with around():
            found[cores] = measured(one.artifact, one.log, options)
        console.print(rendered(found))
    print(one.record(found))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__, log="kuairand")
    made.add_argument("--budgets", nargs="+", default=["20x", "10x", "50x", "30x"])
    made.add_argument("--rounds", type=int, default=3, help="of the whole command")
    made.add_argument("--all", action="store_true", help="with all methods too")
    return made.parse_args()


if __name__ == "__main__":
    command(main)
