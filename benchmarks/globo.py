"""The whole chain on a large log by the command line, each step measured: time, rows/s, memory.

    python -m benchmarks.globo

Every step is a process of its own, as a user would start it. Its rows per second are those of the
log's rows it went over, by the wall time of the whole process, start-up included; the trainer's own
figure stands beside it. A step whose result is in the work folder is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks import child
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.steps import Steps
from embedcomp.log.click_log import ClickLog
from embedcomp.recipes.settings import CompressSettings

MODEL = "deepfm"
MIN_COUNT = 10


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The commands, in their order."""

    log: ClickLog
    steps: Steps
    options: argparse.Namespace

    def run(self) -> dict[str, Any]:
        """What every step took, and what the last ones found."""
        self.steps.folder.mkdir(parents=True, exist_ok=True)
        evaluated = {"original": self.steps.folder / "model"}
        found = {
            "count": self._step("count", ["log", "profile", self.log.path]),
            "train": self._step("train", self._train(evaluated["original"])),
        }
        for place, budget in enumerate(self.options.budgets):
            evaluated[budget] = self.steps.folder / f"artifact-{budget}"
            tuned = self.options.tune_epochs
            arguments = self._compress(evaluated["original"], evaluated[budget], budget, tuned)
            if self.options.control and not place:  # one control serves every budget
                evaluated["control"] = self.steps.folder / "control"
                arguments += ["--control", str(evaluated["control"])]
            found[f"compress_{budget}"] = self._step(f"compress_{budget}", arguments)
        if self.options.control:  # where an original is not trained to its end, as it is here
            for budget in self.options.budgets:
                name = f"control_{budget}"
                evaluated[name] = self.steps.folder / f"artifact-{name}"
                arguments = self._compress(evaluated["control"], evaluated[name], budget, 0)
                found[f"compress_{name}"] = self._step(f"compress_{name}", arguments)
        for name, folder in evaluated.items():
            arguments = ["evaluate", str(folder), "--log", self.log.path, "--split", "test"]
            found[f"evaluate_{name}"] = self._step(f"evaluate_{name}", arguments)
        return found

    def _train(self, model: Path) -> list[str]:
        arguments = ["train", self.log.path, "--model", MODEL, "--out", str(model)]
        arguments += ["--min-count", str(MIN_COUNT), "--seed", str(self.options.seed)]
        if self.options.epochs is not None:
            arguments += ["--epochs", str(self.options.epochs)]
        return [*arguments, *(f"--set={change}" for change in self.options.set)]

    def _compress(self, model: Path, artifact: Path, budget: str, epochs: int) -> list[str]:
        arguments = ["compress", str(model), "--log", self.log.path, "--out", str(artifact)]
        return [*arguments, "--budget", budget, "--tune-epochs", str(epochs)]

    def _step(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            file = self.steps.folder / f"{name}.output.json"
            console.print(f"{name} ...")
            done = child.run(["embedcomp.cli.main", *arguments, "--json", str(file)], shown=True)
            told = json.loads(file.read_text())
            rows = self._rows(name, told, arguments)
            return {
                "seconds": done.seconds,
                "peak_bytes": done.peak_bytes,
                "rows": rows,
                "rows_per_second": rows / done.seconds,
                **_facts(told),
            }

        return self.steps.run(name, make)

    def _rows(self, name: str, told: dict[str, Any], arguments: Sequence[str]) -> int:
        """Rows of the log that a step went over; validation and counting passes are not added."""
        train = self.log.rows("train")
        if name == "count":
            return train
        if name == "train":
            return train * _epochs(told)
        if name.startswith("compress"):
            passes = int(arguments[arguments.index("--tune-epochs") + 1])
            passes *= 2 if "--control" in arguments else 1
            return min(train, CompressSettings(budget="1x").measure_rows) + passes * train
        return self.log.rows("test")


def _facts(told: dict[str, Any]) -> dict[str, Any]:
    """What of a command's JSON belongs into the result."""
    keys = ("auc", "logloss", "calibration", "bytes", "rows_per_second", "metrics", "history")
    found = {key: told[key] for key in keys if key in told}
    if "rows_per_second" in found:
        found["scored_rows_per_second"] = found.pop("rows_per_second")
    speeds = [entry.get("rows_per_second", 0) for entry in told.get("history", [])]
    if any(speeds):
        found["trainer_rows_per_second"] = median(speed for speed in speeds if speed)
    return found


def _epochs(told: dict[str, Any]) -> int:
    """Passes over the training split; an evaluation tells how many epochs are done."""
    return max((entry["epoch"] for entry in told["history"]), default=0)


def render(found: dict[str, Any]) -> Table:
    table = Table("step")
    for column in ("seconds", "rows/s", "peak memory", "AUC", "log loss", "bytes"):
        table.add_column(column, justify="right")
    for name, made in found.items():
        table.add_row(
            name,
            f"{made['seconds']:,.1f}",
            f"{made['rows_per_second']:,.0f}",
            f"{made['peak_bytes'] / 2**20:,.0f} MiB",
            f"{made['auc']:.5f}" if "auc" in made else "",
            f"{made['logloss']:.5f}" if "auc" in made else "",
            f"{made['bytes']['total']:,}" if "bytes" in made else "",
        )
    return table


def main() -> None:
    options = _options()
    log = open_log(options.data, options.log)
    settings = {
        **{name: getattr(options, name) for name in ("log", "epochs", "budgets", "tune_epochs")},
        **{name: getattr(options, name) for name in ("set", "control", "seed")},
        "model": MODEL,
        "min_count": MIN_COUNT,
    }
    chain = Chain(log=log, steps=Steps(options.work / "globo", settings), options=options)
    found = chain.run()
    console.print(render(found))
    file = chain.steps.record(
        "globo",
        data={"name": options.log, "rows": {split: log.rows(split) for split in log.schema.splits}},
        settings=settings,
        seeds=[options.seed],
        results=found,
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--log", default="globo_clicks", help="folder in --data")
    options.add_argument("--epochs", type=int, help="at most; the trainer's default otherwise")
    options.add_argument("--budgets", nargs="*", default=["10x", "30x"])
    options.add_argument("--tune-epochs", type=int, default=1)
    options.add_argument("--control", action="store_true", help="also train the original on")
    options.add_argument("--set", action="append", default=[], help="training setting, name=value")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--work", type=Path, default=WORK, help="folder for the steps' results")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
