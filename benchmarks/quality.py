"""Quality of compressed models on a real log: DCN-V2, several seeds, against the control.

    python -m benchmarks.quality --log kuairand

For every seed the original is trained with default settings, and the control is that model with
the extra epochs that a tuned one gets. Every variant is compressed from it and scored on the test
split, which nothing else reads. `svd` and `low_rank` have the same storages to choose from and the
same budget, so that the two differ by nothing but the factors.

Every step's result is kept in the work folder; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import result
from benchmarks.script import WORK, command, console, open_log, parser
from benchmarks.steps import Steps
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.source import ModelSource
from embedcomp.errors import BudgetTooSmall
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.recipes.evaluate import evaluate
from embedcomp.recipes.progress import shown
from embedcomp.recipes.settings import CompressSettings, changed, read_changes
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import TrainSettings

MIN_COUNT = 2  # the command line's default
FIGURES = ("auc", "logloss", "calibration")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compress."""

    methods: tuple[str, ...]  # empty: all
    budget: str
    tune_epochs: int

    @property
    def name(self) -> str:
        tuned = f"tuned_{self.tune_epochs}" if self.tune_epochs else "untuned"
        return f"{'+'.join(self.methods) or 'all'}_{self.budget}_{tuned}"


def variants(budgets: Sequence[str], tune_epochs: int) -> list[Variant]:
    """The best plan tuned, and each of the two factorisations with and without tuning."""
    made = []
    for budget in budgets:
        made.append(Variant(methods=(), budget=budget, tune_epochs=tune_epochs))
        for epochs in (0, tune_epochs):
            for method in ("svd", "low_rank"):
                made.append(Variant(methods=(method,), budget=budget, tune_epochs=epochs))
    return made


class Seed:
    """All steps of one seed; each is run on first use unless its result is kept."""

    def __init__(self, seed: int, log: ClickLog, steps: Steps, options: argparse.Namespace):
        self.seed, self.log, self.steps, self.options = seed, log, steps, options

    def figures(self, wanted: Sequence[Variant]) -> dict[str, dict[str, Any]]:
        """Test figures of the original, the control and the variants, by name."""
        made: dict[str, Callable[[], dict[str, Any]]] = {
            "original": lambda: self._scored(self.original),
            "control": self._control,
        }
        made |= {variant.name: partial(self._compressed, variant) for variant in wanted}
        return {name: self._step(f"test/{name}", make) for name, make in made.items()}

    @cached_property
    def original(self) -> Artifact:
        return Artifact.open(self._step("train", self._train)["folder"])

    @cached_property
    def measured(self) -> Statistics:
        """Statistics of the original's layers, whatever the tuning and the budget."""
        return recipes.measure(self.original, self.log, CompressSettings(budget="1x"))

    def _step(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return self.steps.run(f"{self.seed}/{name}", make)

    def _folder(self, name: str) -> Path:
        return self.steps.folder / str(self.seed) / "models" / name

    def _train(self) -> dict[str, Any]:
        counts = count(self.log, self.log.pieces("train"))
        features = Features.from_counts(self.log, counts, MIN_COUNT)
        settings = changed(TrainSettings(seed=self.seed), self.options.set)
        shape = read_changes(self.options.model_set)
        source = ModelSource(model=self.options.model, settings=shape).complete()
        out = self._folder("original")
        with shown(f"seed {self.seed}: original") as watch:
            made = recipes.train(self.log, features, source, settings, out, watch=watch)
        return {"folder": str(made.folder), **recipes.summary(made)}

    def _control(self) -> dict[str, Any]:
        settings = self._settings(Variant(budget="1x", methods=(), tune_epochs=self._epochs))
        out = self._folder("control")
        with shown(f"seed {self.seed}: control") as watch:
            made = recipes.control(self.original, self.log, settings, out, watch=watch)
        return self._scored(made)

    def _compressed(self, variant: Variant) -> dict[str, Any]:
        settings, out = self._settings(variant), self._folder(variant.name)
        try:
            plan = recipes.plan(self.original, self.measured, settings)
        except BudgetTooSmall as error:
            return {"failed": str(error)}
        with shown(f"seed {self.seed}: {variant.name}") as watch:
            made = recipes.compress(
                self.original, self.log, self.measured, plan, settings, out, watch=watch
            )
        return {**self._scored(made), "predicted_loss": plan.loss}

    @property
    def _epochs(self) -> int:
        epochs: int = self.options.tune_epochs
        return epochs

    def _settings(self, variant: Variant) -> CompressSettings:
        tune = TuneSettings(epochs=variant.tune_epochs, seed=self.seed)
        return CompressSettings(budget=variant.budget, methods=variant.methods, tune=tune)

    def _scored(self, made: Artifact) -> dict[str, Any]:
        return evaluate(made.model(), self.log, made.features, "test", made.folder)


def summary(by_seed: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Mean and spread over seeds of every figure, and of the AUC's distance to the control's."""
    found: dict[str, Any] = {}
    for name in by_seed[0]:
        made = [(figures[name], figures["control"]) for figures in by_seed]
        failed = [one["failed"] for one, _ in made if "failed" in one]
        if failed:
            found[name] = {"failed": failed}
            continue
        found[name] = {
            **{figure: result.over_seeds([one[figure] for one, _ in made]) for figure in FIGURES},
            "auc_minus_control": result.over_seeds(
                [one["auc"] - other["auc"] for one, other in made]
            ),
            "bytes": [one["bytes"] for one, _ in made],
            "rows_per_second": [one["rows_per_second"] for one, _ in made],
        }
    return found


def pairs(by_seed: Sequence[dict[str, dict[str, Any]]], wanted: Sequence[Variant]) -> list[Any]:
    """low_rank against svd with the same budget and tuning: the difference in AUC, seed by seed."""
    found = []
    for variant in wanted:
        if variant.methods != ("low_rank",):
            continue
        other = Variant(**{**asdict(variant), "methods": ("svd",)})
        both = [(figures[variant.name], figures[other.name]) for figures in by_seed]
        entry: dict[str, Any] = {"budget": variant.budget, "tune_epochs": variant.tune_epochs}
        if any("failed" in one for both_of_seed in both for one in both_of_seed):
            found.append({**entry, "failed": True})
            continue
        gain = result.over_seeds([ours["auc"] - svd["auc"] for ours, svd in both])
        found.append(
            {
                **entry,
                "low_rank_bytes": [ours["bytes"]["total"] for ours, _ in both],
                "svd_bytes": [svd["bytes"]["total"] for _, svd in both],
                "auc_gain": gain,
            }
        )
    return found


def render(found: dict[str, Any], title: str) -> Table:
    table = Table("model", title=title)
    for column in ("bytes", "size", "test AUC", "std", "log loss", "AUC - control", "std"):
        table.add_column(column, justify="right")
    whole = found["original"]["bytes"][0]["total"]
    for name, figures in found.items():
        if "failed" in figures:
            table.add_row(name, "no plan fits")  # the reason is in the result file
            continue
        size, gap = figures["bytes"][0]["total"], figures["auc_minus_control"]
        table.add_row(
            name,
            f"{size:,}",
            f"1/{whole / size:.1f}",
            f"{figures['auc']['mean']:.5f}",
            _deviation(figures["auc"]),
            f"{figures['logloss']['mean']:.5f}",
            f"{gap['mean']:+.5f}",
            _deviation(gap),
        )
    return table


def _deviation(figure: dict[str, Any]) -> str:
    return "" if figure["std"] is None else f"{figure['std']:.5f}"


def main() -> None:
    options = _options()
    log = open_log(options.data, options.log)
    settings = {
        **{name: getattr(options, name) for name in ("log", "model", "tune_epochs", "set")},
        "model_set": options.model_set,
        "min_count": MIN_COUNT,
    }
    steps = Steps(options.work / "quality" / options.log, settings)
    wanted = variants(options.budgets, options.tune_epochs)
    by_seed = [Seed(seed, log, steps, options).figures(wanted) for seed in options.seeds]
    found = summary(by_seed)
    console.print(render(found, f"{options.model} on {options.log}, {len(by_seed)} seeds"))
    file = steps.record(
        f"quality-{options.log}",
        data={"name": options.log, "rows": {split: log.rows(split) for split in log.schema.splits}},
        settings={**settings, "budgets": options.budgets},
        seeds=options.seeds,
        results={"models": found, "low_rank_against_svd": pairs(by_seed, wanted)},
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--log", default="kuairand", help="folder in --data")
    options.add_argument("--model", default="dcnv2")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--budgets", nargs="+", default=["5x", "20x"])
    options.add_argument("--tune-epochs", type=int, default=1)
    options.add_argument("--set", action="append", default=[], help="training setting, name=value")
    options.add_argument("--model-set", action="append", default=[], help="model setting")
    options.add_argument("--work", type=Path, default=WORK, help="folder for the steps' results")
    return options.parse_args()


if __name__ == "__main__":
    command(main)
