"""Predicted and measured microseconds a call of a model's plans.

    python -m benchmarks.latency MODEL --log movielens_1m

MODEL is one that `embedcomp train` made on the log. Plans keep to shares of the original's
predicted time, alone and beside a tenth of the bytes; each is carried out, exported and timed on
one thread. The cost model is made first, on the same machine. Other processes make calls longer and
never shorter, so what is measured is the third decile of the calls of a second.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import result
from benchmarks.script import WORK, command, console, open_log, parser
from embedcomp import recipes
from embedcomp.artifact import Artifact
from embedcomp.compress import swap
from embedcomp.compress.plan import Plan
from embedcomp.compress.statistics import Statistics
from embedcomp.errors import LatencyTooSmall
from embedcomp.scoring import calibrate
from embedcomp.scoring.alone import as_array, stand_alone_from_log
from embedcomp.scoring.engine import Engine
from embedcomp.scoring.lower import lower
from embedcomp.scoring.prepare import from_parts, made_up
from embedcomp.settings import CompressSettings

SHARES = (0.8, 0.6, 0.4, 0.3)  # of the original's predicted time
BUDGETS = ("", "10x")
ROWS = (1, 64)  # of a call
METHODS = ("low_rank", "half", "row_int8", "dense_int8")
MEASURE_ROWS, SECONDS, DIFFERENT = 50_000, 1.0, 8


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", type=Path, help="made by `embedcomp train`")
    options.add_argument("--log", default="movielens_1m", help="that it was trained on")
    given = options.parse_args()
    original, log = Artifact.open(given.model), open_log(given.data, given.log)
    began = time.perf_counter()
    calibrate.calibrated().save(file := WORK / "cost.json")
    seconds = time.perf_counter() - began
    common = {"methods": METHODS, "measure_rows": MEASURE_ROWS, "cost_model": str(file)}
    whole = CompressSettings(latency_budget="1000ms@1", **common)
    measured = recipes.measure(original, log, whole)
    planning = recipes.Planning(original, measured)
    found: list[dict[str, Any]] = []
    for rows in ROWS:
        slow = planning.plan(CompressSettings(latency_budget=f"1000ms@{rows}", **common))
        found.append(_held(slow, original, measured, rows))
        for budget in BUDGETS:
            for share in SHARES:
                time_of = f"{share * (slow.microseconds or 0):.1f}us@{rows}"
                settings = CompressSettings(budget=budget, latency_budget=time_of, **common)
                try:
                    plan = planning.plan(settings)
                except LatencyTooSmall as error:
                    console.print(str(error))
                    continue
                found.append({"budget": budget, **_held(plan, original, measured, rows)})
    console.print(_render(found))
    written = result.write(
        "latency",
        data={"log": given.log, "model": original.manifest.source},
        settings={"methods": METHODS, "measure_rows": MEASURE_ROWS, "seconds": SECONDS},
        seeds=[0],
        results={"calibration_seconds": seconds, "plans": found},
        folder=given.results,
    )
    print(written)


def _held(plan: Plan, original: Artifact, measured: Statistics, rows: int) -> dict[str, Any]:
    """A plan's prediction against what a call takes."""
    model = original.model()
    made = swap.apply(model, plan, recipes.layers_of(original, model), measured)
    alone = stand_alone_from_log(made, original.features)
    arrays = {name: as_array(tensor) for name, tensor in alone.held.items()}
    about = alone.standalone
    assert about.graph is not None
    program = lower(about.graph, about.tensors(arrays), about.user, about.user_columns)
    engine = Engine(about.graph, program, about.user)
    inputs = [
        from_parts(made_up(about, original.features, rows, seed), about.leaves)
        for seed in range(DIFFERENT)
    ]
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        engine.score(inputs[len(taken) % DIFFERENT])
        taken.append(time.perf_counter() - start)
    return {
        "latency_budget": plan.latency_budget,
        "bytes": plan.bytes_after,
        "loss": plan.loss,
        "predicted": plan.microseconds,
        "measured": 1e6 * float(np.quantile(taken, 0.3)),
        "median": 1e6 * float(np.median(taken)),
    }


def _render(found: list[dict[str, Any]]) -> Table:
    table = Table("budget", "latency budget", "bytes", "predicted us", "measured us", "ratio")
    for one in found:
        ratio = one["predicted"] / one["measured"]
        numbers = f"{one['bytes']:,}", f"{one['predicted']:,.1f}", f"{one['measured']:,.1f}"
        table.add_row(one.get("budget", ""), one["latency_budget"], *numbers, f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    command(main)
