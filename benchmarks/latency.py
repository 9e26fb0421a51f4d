"""Predicted and measured microseconds a call of plans within latency budgets.

    python -m benchmarks.latency

Models are trained for one epoch on a made-up log and on real ones. Each is planned within several
times of a call, alone and beside a number of bytes; a plan is carried out and timed in turns with
its original, on one thread, and planned anew where it misses its budget. The file has every plan
that was tried, so the first ones say how good predictions are and the last ones whether budgets are
kept. The cost model is made first, on the same machine. What is done is kept in the work folder
until the result is written; the same command goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import result
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.steps import Steps
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.engine import calibrate
from embedcomp.engine.prepare import encoded
from embedcomp.errors import LimitsTooSmall
from embedcomp.kernels import clock
from embedcomp.log.batches import read_rows
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.log.synth import synth
from embedcomp.planning.plan import Plan
from embedcomp.recipes import in_time
from embedcomp.recipes.settings import CompressSettings
from embedcomp.support.files import remove
from embedcomp.train.settings import TrainSettings

MODELS = {
    "synth": ("dcnv2", "nfm"),
    "movielens_1m": ("dcnv2", "dlrm", "deepfm", "fibinet", "autoint", "nfm"),
    "kuairand": ("dlrm", "deepfm"),
}
LIMITS = (("", "1.5x@1"), ("5x", "2x@64"), ("", "3x@64"), ("10x", "1.5x@256"))
METHODS = ("low_rank", "half", "row_int8", "row_int4", "dense_int8")
SYNTH_ROWS, MEASURE_ROWS, MIN_COUNT = 100_000, 20_000, 2
TURNS, CALLS = 20, 8  # of preparing a request


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--logs", nargs="*", choices=MODELS, default=list(MODELS))
    options.add_argument("--work", type=Path, default=WORK / "latency", help="folder for the steps")
    given = options.parse_args()
    settings = {"models": MODELS, "limits": LIMITS, "methods": METHODS, "rows": MEASURE_ROWS}
    settings |= {"synth_rows": SYNTH_ROWS, "seconds": in_time.SECONDS}
    steps = Steps(given.work, settings)
    cost_model = given.work / "cost.json"
    calibration = steps.run("calibration", partial(_calibrate, cost_model))
    plans: list[dict[str, Any]] = []
    for name in given.logs:
        for model in MODELS[name]:
            step = partial(_of_model, given, name, model, cost_model)
            plans += steps.run(f"{name}-{model}", step)["plans"]
            console.print(_render(plans[-len(LIMITS) :]))
    summary = _summary(plans)
    console.print(summary)
    written = result.write(
        "latency",
        data={"logs": given.logs},
        settings=settings,
        seeds=[0],
        results={"calibration": calibration, "summary": summary, "plans": plans},
        folder=given.results,
    )
    remove(given.work)  # another run measures anew
    print(written)


def _calibrate(file: Path) -> dict[str, Any]:
    began = time.perf_counter()
    found = calibrate.timed()
    model = calibrate.modelled(found)
    model.save(file)
    off = [abs(model.of(one.counts) / one.microseconds - 1) for one in found]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "programs": len(off), "off": _quantiles(off)}


def _of_model(given: Any, name: str, model: str, cost_model: Path) -> dict[str, Any]:
    """Plans of a model and what came of them."""
    log = _log(given, name)
    original = _trained(log, model, given.work / "models" / f"{name}-{model}")
    common = {"methods": METHODS, "measure_rows": MEASURE_ROWS, "cost_model": str(cost_model)}
    whole = CompressSettings(latency_budget="1x@1", **common)
    planning = recipes.Planning(original, recipes.measure(original, log, whole))
    found = []
    for budget, latency in LIMITS:
        asked = CompressSettings(budget=budget, latency_budget=latency, **common)
        one = {"log": name, "model": model, "budget": budget, "latency_budget": latency}
        try:
            tried = planning.tried(asked)
        except LimitsTooSmall as error:
            found.append({**one, "reason": str(error), "tried": []})
            continue
        rows = int(latency.partition("@")[2])
        preparing = _preparing(log, original.features, rows)
        found.append({**one, "preparing": preparing, "tried": [_told(plan) for plan in tried]})
    return {"plans": found}


def _log(given: Any, name: str) -> ClickLog:
    folder = given.work / "synth"
    if name != "synth":
        return open_log(given.data, name)
    if not (folder / "schema.toml").exists():
        synth(folder, SYNTH_ROWS)
    return ClickLog(str(folder))


def _trained(log: ClickLog, model: str, out: Path) -> Artifact:
    features = Features.from_counts(log, count(log, log.pieces("train")), MIN_COUNT)
    source = ModelSource(model=model).complete()
    return recipes.train(log, features, source, TrainSettings(epochs=1), out)


def _preparing(log: ClickLog, features: Features, rows: int) -> float:
    """Microseconds of preparing a call: encoded rows become the engine's inputs."""
    read = next(islice(read_rows(log, features, log.pieces("valid")), 1))
    call = partial(encoded, read.take(np.arange(rows) % len(read)), features)
    return clock.low(clock.in_turns([[call] * CALLS], 0, TURNS)[:, 0])


def _told(plan: Plan) -> dict[str, Any]:
    return {
        "bytes": plan.bytes_after,
        "loss": plan.loss,
        "predicted_before": plan.microseconds_before,
        "predicted": plan.microseconds,
        "measured_before": plan.measured_microseconds_before,
        "measured": plan.measured_microseconds,
        "error": plan.measured_error,
        "times_allowed": plan.times_allowed,
        "in_time": plan.in_time,
        "said": plan.missed,
    }


def _summary(plans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summary of all plans: how far predictions were off, and how often budgets were kept."""
    made = [plan["tried"] for plan in plans if plan["tried"]]
    first = [tried[0] for tried in made]
    off = [abs(one["measured"] / one["predicted"] - 1) for one in first]
    off_before = [abs(one["measured_before"] / one["predicted_before"] - 1) for one in first]
    return {
        "plans": len(made),
        "not_possible": len(plans) - len(made),
        "measured_against_predicted": _quantiles(off),
        "the_same_of_originals": _quantiles(off_before),
        "noise": _quantiles([one["error"] for one in first]),
        "in_time_at_first": sum(one["in_time"] for one in first),
        "in_time_at_last": sum(tried[-1]["in_time"] for tried in made),
        "times_allowed_at_first": _quantiles([one["times_allowed"] for one in first]),
        "times_allowed_at_last": _quantiles([tried[-1]["times_allowed"] for tried in made]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    median, most, worst = np.quantile(values, (0.5, 0.9, 1.0)).tolist()
    return {"median": median, "nine_in_ten": most, "worst": worst}


def _render(plans: Sequence[dict[str, Any]]) -> Table:
    table = Table("log", "model", "budget", "within", "predicted us", "measured us", "± %", "speed")
    for plan in plans:
        asked = [plan[key] for key in ("log", "model", "budget", "latency_budget")]
        for one in plan["tried"]:
            told = (f"{one[f'{what}_before']:,.1f} to {one[what]:,.1f}" for what in TOLD)
            speed = one["measured_before"] / one["measured"]
            table.add_row(*asked, *told, f"{100 * one['error']:.1f}", f"{speed:.2f}x")
        if not plan["tried"]:
            table.add_row(*asked, "none", plan["reason"])
    return table


TOLD = ("predicted", "measured")


if __name__ == "__main__":
    command(main)
