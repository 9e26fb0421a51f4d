"""Training speed of embedcomp, FuxiCTR and DeepCTR-Torch: same model, rows, threads, one run.

    python -m benchmarks.training_speed

The tools take turns (A B C A B C ...), each time in a fresh process kept to `--threads` cores, and
each is timed over a fixed number of steps after a warm-up. embedcomp reads the Parquet files,
once within the warm-up where the log fits its buffer; what it shuffles is in its time. The others
have their encoded rows in memory, FuxiCTR even as tensors that are only sliced.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks import child, result
from benchmarks.script import command, console, open_log, parser
from benchmarks.speed import peers
from benchmarks.speed.prepare import prepare
from benchmarks.speed.task import Task
from embedcomp.log.click_log import ClickLog

OURS = "embedcomp"
TOOLS = {OURS: "embedcomp_steps", "fuxictr": "fuxictr_steps", "deepctr-torch": "deepctr_steps"}
Runs = dict[str, list[dict[str, Any]]]  # by tool


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model on a log."""

    model: str
    hidden: tuple[int, ...]
    dropout: float
    min_count: int  # ids seen fewer times share one row
    fuxictr_l2: float  # tuned for the log
    warm_up_steps: int
    steps: int


CASES = {
    "globo_clicks": Case(
        model="deepfm",
        hidden=(256, 128, 64),
        dropout=0.0,
        min_count=10,
        fuxictr_l2=3e-4,
        warm_up_steps=20,
        steps=512,
    ),
    "kuairand": Case(  # whole epochs, of 37 steps
        model="dcnv2",
        hidden=(400, 400, 400),
        dropout=0.2,
        min_count=2,
        fuxictr_l2=0.0,
        warm_up_steps=37,
        steps=74,
    ),
}


def main() -> None:
    options = _options()
    logs = {name: open_log(options.data, name) for name in options.cases}
    python, reason = None, ""
    try:
        python = peers.environment(options.peers)
    except peers.PeersMissing as error:
        reason = str(error)
    found = {}
    for name, log in logs.items():
        case = CASES[name]
        if options.steps:
            case = replace(case, warm_up_steps=1, steps=options.steps)
        found[name] = _compare(log, case, python, reason, options)
        console.print(_render(name, found[name]))
    file = result.write(
        "training_speed",
        data={name: {"rows": log.rows("train")} for name, log in logs.items()},
        settings={"threads": options.threads, "rounds": options.rounds, "batch_rows": 4096}
        | {"optimizer": "adam", "turns": "alternating, a fresh process each"},
        seeds=list(range(options.rounds)),
        results=found,
        peers=peers.versions(python) if python else {"peers": None},
        folder=options.results,
    )
    print(file)


def _compare(
    log: ClickLog, case: Case, python: Path | None, reason: str, options: argparse.Namespace
) -> dict[str, Any]:
    runs: Runs = {tool: [] for tool in TOOLS}
    failed = {} if python else {tool: reason for tool in TOOLS if tool != OURS}
    with tempfile.TemporaryDirectory() as scratch:
        shape = {k: v for k, v in asdict(case).items() if k != "min_count"}
        task = Task(log=log.path, folder=scratch, threads=options.threads, **shape)
        rows = (task.warm_up_steps + task.steps) * task.batch_rows
        features = prepare(log, case.min_count, rows, task.seed, Path(scratch))
        for seed in range(options.rounds):
            for tool in [tool for tool in TOOLS if tool not in failed]:
                try:
                    runs[tool].append(_run(tool, replace(task, seed=seed), python))
                except child.ChildFailed as error:
                    failed[tool] = str(error)
    return {
        "case": asdict(case),
        "table_rows": sum(feature.rows for feature in features.ids),
        "tools": _tools(runs, failed),
        "ratios": _ratios(runs),
    }


def _run(tool: str, task: Task, python: Path | None) -> dict[str, Any]:
    arguments = [f"benchmarks.speed.{TOOLS[tool]}", task.to_json()]
    where = sys.executable if tool == OURS or python is None else python
    done = child.run(arguments, python=where, threads=task.threads)
    told = done.answer
    speed = told["rows"] / told["seconds"]
    return {**told, "rows_per_second": speed, "peak_bytes": done.peak_bytes}


def _tools(runs: Runs, failed: dict[str, str]) -> dict[str, Any]:
    """Medians and runs of those that ran, reasons of those that did not."""
    found: dict[str, Any] = {}
    for tool, made in runs.items():
        found[tool] = {"runs": made}
        if made:
            found[tool]["rows_per_second"] = median(run["rows_per_second"] for run in made)
        if tool in failed:
            found[tool]["failed"] = failed[tool]
    return found


def _ratios(runs: Runs) -> dict[str, float]:
    """embedcomp's speed over each other tool's: the median over rounds."""
    found = {}
    for tool, made in runs.items():
        pairs = list(zip(runs[OURS], made, strict=False))  # a tool that failed has fewer rounds
        if tool != OURS and pairs:
            found[tool] = median(a["rows_per_second"] / b["rows_per_second"] for a, b in pairs)
    return found


def _render(name: str, found: dict[str, Any]) -> Table:
    table = Table("tool", title=f"{found['case']['model']} on {name}")
    for column in ("rows/s", "embedcomp is faster by", "peak memory", "parameters"):
        table.add_column(column, justify="right")
    for tool, made in found["tools"].items():
        if not made["runs"]:
            table.add_row(tool, f"did not run: {made['failed']}")
            continue
        ratio = found["ratios"].get(tool)
        table.add_row(
            tool,
            f"{made['rows_per_second']:,.0f}",
            "" if ratio is None else f"{ratio:.2f}x",
            f"{max(run['peak_bytes'] for run in made['runs']) / 2**20:,.0f} MiB",
            f"{made['runs'][0]['parameters']:,}",
        )
    return table


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--rounds", type=int, default=3, help="turns of each tool")
    options.add_argument("--threads", type=int, default=2, help="and cores")
    options.add_argument("--steps", type=int, help="timed steps, for a quick look: no warm-up")
    options.add_argument("--peers", type=Path, default=child.ROOT / "build" / "peers")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
