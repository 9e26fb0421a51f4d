"""The trainer's defaults against those before them, by the command line, log by log.

    python -m benchmarks.defaults --log kuairand

For each seed one run with --before and one with the defaults, each a process of its own, one after
the other. The splits are scored when all are trained; the test split is read once. `--log drift`
writes a log that moves (`embedcomp log synth --drift`). A run that is in the work folder is not run
again, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import child, result
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.steps import Steps
from embedcomp.log.click_log import ClickLog
from embedcomp.log.synth import synth

DRIFT = "drift"
DEFAULTS, BEFORE = "defaults", "before"
OLD = ("embedding_l2=6000", "evaluations_per_epoch=1", "max_fall=1.0", "batch_rows=4096")
SPLITS = ("valid", "test")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The commands, in their order."""

    log: ClickLog
    steps: Steps
    options: argparse.Namespace

    def run(self) -> dict[str, Any]:
        """Figures of each kind of settings, over seeds."""
        self.steps.folder.mkdir(parents=True, exist_ok=True)
        changes = {BEFORE: self.options.before, DEFAULTS: []}
        trained: dict[str, list[dict[str, Any]]] = {name: [] for name in changes}
        for seed in range(self.options.seeds):  # in turns, since other processes come and go
            for name, made in trained.items():
                made.append(self._train(f"{name}-{seed}", seed, changes[name]))
        return {
            name: self._figures(made, [self._scored(f"{name}-{seed}") for seed in range(len(made))])
            for name, made in trained.items()
        }

    def _train(self, name: str, seed: int, changes: Sequence[str]) -> dict[str, Any]:
        options = self.options
        arguments = ["train", self.log.path, "--model", options.model, "--seed", str(seed)]
        arguments += ["--out", str(self.steps.folder / name), "--min-count", str(options.min_count)]
        if options.epochs is not None:
            arguments += ["--epochs", str(options.epochs)]
        return self._step(name, [*arguments, *(f"--set={change}" for change in changes)])

    def _scored(self, name: str) -> dict[str, Any]:
        folder = str(self.steps.folder / name)
        arguments = ["evaluate", folder, "--log", self.log.path]
        return {s: self._step(f"{name}-{s}", [*arguments, "--split", s]) for s in SPLITS}

    def _step(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            file = self.steps.folder / f"{name}.output.json"
            console.print(f"{name} ...")
            run = ["embedcomp.cli.main", *arguments, "--json", str(file)]
            done = child.run(run, threads=self.options.threads, shown=True)
            told = json.loads(file.read_text())
            kept = ("auc", "logloss", "history")
            return {"seconds": done.seconds} | {key: told[key] for key in kept if key in told}

        return self.steps.run(name, make)

    def _figures(
        self, trained: Sequence[dict[str, Any]], scored: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        figures = {
            f"{split}_{figure}": result.over_seeds([one[split][figure] for one in scored])
            for split in SPLITS
            for figure in ("auc", "logloss")
        }
        histories = [made["history"] for made in trained]
        return {
            **figures,
            "seconds": result.over_seeds([made["seconds"] for made in trained]),
            "epochs": [history[-1]["epoch"] for history in histories],
            "embedding_l2": [history[0].get("embedding_l2") for history in histories],
            "probe_seconds": [
                sum(probe["seconds"] for probe in history[0].get("probes", []))
                for history in histories
            ],
            "histories": histories,
        }


def render(found: dict[str, Any]) -> Table:
    table = Table(
        "settings", "AUC valid", "AUC test", "log loss test", "seconds", "of probes", "L2"
    )
    for name, made in found.items():
        table.add_row(
            name,
            *(
                _spread(made[figure], digits)
                for figure, digits in (("valid_auc", 5), ("test_auc", 5), ("test_logloss", 5))
            ),
            _spread(made["seconds"], 0),
            f"{sum(made['probe_seconds']) / len(made['probe_seconds']):,.0f}",
            ", ".join(f"{l2:,.0f}" for l2 in made["embedding_l2"] if l2 is not None),
        )
    return table


def _spread(found: dict[str, Any], digits: int) -> str:
    mean = f"{found['mean']:,.{digits}f}"
    return mean if found["std"] is None else f"{mean} +- {found['std']:,.{digits}f}"


def _log(options: argparse.Namespace) -> ClickLog:
    """The log in --data, or the made-up one, which is written when it is not there."""
    if options.log != DRIFT:
        return open_log(options.data, options.log)
    folder = options.work / f"{DRIFT}-{options.rows}"
    if not (folder / "schema.toml").exists():
        synth(folder, options.rows, drift=True)
    return ClickLog(str(folder))


def main() -> None:
    options = _options()
    log = _log(options)
    names = ("log", "rows", "model", "min_count", "epochs", "before", "threads")
    settings = {name: getattr(options, name) for name in names}
    steps = Steps(options.work / f"defaults-{options.log}", settings)
    found = Runs(log=log, steps=steps, options=options).run()
    console.print(render(found))
    file = result.write(
        f"defaults-{options.log}",
        data={"name": options.log, "rows": {split: log.rows(split) for split in log.schema.splits}},
        settings=settings,
        seeds=list(range(options.seeds)),
        results=found,
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--log", default=DRIFT, help="folder in --data, or drift")
    options.add_argument("--rows", type=int, default=500_000, help="of the made-up log")
    options.add_argument("--model", default="dcnv2")
    options.add_argument("--min-count", type=int, default=2)
    options.add_argument("--epochs", type=int, help="at most; the trainer's default otherwise")
    options.add_argument("--before", nargs="*", default=list(OLD), help="settings, name=value")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--work", type=Path, default=WORK, help="folder for the runs")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
