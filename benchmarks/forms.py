"""Each method that trains by itself, in the tables of a model: from the model and from the log.

    python -m benchmarks.forms --log movielens_1m

The dense part is kept as it is, and trained with the tables. A method that cannot make tables so
small says why, and is run at the smallest that it can. Beside them are magnitude pruning, trained
on as long from the model, the plan of all that needs no training, untrained, the plan of all there
is, trained, the original, and the control, trained on for as many epochs on labels. Figures are
those of the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

from rich.table import Table

from benchmarks import one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from embedcomp import methods, recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original, of_plan, score
from embedcomp.errors import BudgetTooSmall
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning.plan import Plan
from embedcomp.recipes.settings import CompressSettings, read_changes, validated
from embedcomp.sensitivity.layer import TableSpec
from embedcomp.sensitivity.layers import Found
from embedcomp.train.settings import FAR, NEAR, FormTrainSettings

WAYS = ("model", "log")
PRUNED = [name for name in methods.every() if name.startswith("magnitude")]  # in every table
UNTRAINED, PLANNED = PLANS = "untrained", "planned"  # the plan of all that needs no training,
# as it is made, and that of all there is, trained
RATE_FACTORS = (NEAR, FAR)  # of the control, the better one by validation rows
CHOSEN_BY, SPLIT = "valid", "test"


class Forms:
    """One trained model, and what each method makes of its tables."""

    def __init__(self, one: OneModel, options: argparse.Namespace):
        self.one, self.options = one, options
        self.original = Original.measure(one.artifact, one.log, self.settings(1.0, ("keep",)))
        planning = self.original.planning
        planning.found = tables_of(planning.found)

    def settings(
        self, ratio: float, names: tuple[str, ...], way: str = "model", seed: int = 0
    ) -> CompressSettings:
        """Tables smaller by a ratio, by these methods or as one of `PLANS`."""
        sizes = model_bytes(self.one.artifact.model())
        budget = sizes["dense"] + int(sizes["tables"] / ratio)
        epochs = 0 if names == (UNTRAINED,) else self.options.epochs
        known = {"epochs": epochs, "seed": seed}
        changes = read_changes(self.options.train_set, known)
        return CompressSettings(
            budget=str(budget),
            methods=() if names[0] in PLANS else names,
            rest=("keep",),
            train=validated(FormTrainSettings, changes, "--train-set"),
            from_log=way == "log",
        )

    def made(self, name: str, ratio: float, way: str, seed: int) -> dict[str, Any]:
        """Figures of one form: of the smallest one where it cannot be so small, and why not."""
        settings, step = self.settings(ratio, (name,), way, seed), f"{name}-{ratio:g}x-{way}-{seed}"
        try:
            return self.carried_out(self.original.planning.plan(settings), settings, step)
        except BudgetTooSmall as error:
            floor = replace(settings, budget=str(error.smallest))
            plan = self.original.planning.plan(floor)
            return self.carried_out(plan, floor, step) | {"floor": str(error)}

    def carried_out(self, plan: Plan, settings: CompressSettings, name: str) -> dict[str, Any]:
        """Figures of a plan that is trained, or why it cannot be."""
        made = self.original.compress(
            plan, settings, self.one.folder / "made" / name, recipes.quiet
        )
        if isinstance(made, str):
            return {"reason": made}
        assert made.plan is not None
        history = made.origin.training["history"]
        return {
            **of_plan(plan),
            **score(made, self.one.log, SPLIT),
            "tables": model_bytes(made.model())["tables"],
            "settings": {planned.layer: planned.settings for planned in made.plan.tables},
            "trained_rows_per_second": [entry.get("rows_per_second") for entry in history],
        }

    def beside(self, seed: int) -> dict[str, Any]:
        """The original, and the control of as many epochs, with what rates suit it better."""
        tried = {factor: self.control(factor, seed) for factor in RATE_FACTORS}
        by_valid = {f: score(one, self.one.log, CHOSEN_BY)["auc"] for f, one in tried.items()}
        best = max(by_valid, key=by_valid.__getitem__)
        return {
            "original": score(self.one.artifact, self.one.log, SPLIT),
            "control": score(tried[best], self.one.log, SPLIT) | {"rate_factors": by_valid},
        }

    def control(self, factor: float, seed: int) -> Artifact:
        """The original, trained on with a factor of the rates."""
        settings = self.settings(1.0, ("keep",), seed=seed)
        settings = replace(settings, train=replace(settings.train, rate_factor=factor))
        out = self.one.folder / "made" / f"control-{seed}-{factor:g}"
        return recipes.control(self.one.artifact, self.one.log, settings, out)


def tables_of(found: Found) -> Found:
    """The tables alone: what else there is stays as it is."""
    tables = {n: one for n, one in found.layers.items() if isinstance(one.spec, TableSpec)}
    others = dict.fromkeys(found.layers.keys() - tables, "is kept as it is")
    return Found(tables, found.refused | others)


def rendered(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line a form: what it takes, and how good and how fast it is."""
    table = Table(
        "form", "bytes of tables", "AUC", "log loss", "rows/s trained", "scored, 64 a call"
    )
    for name, one in found.items():
        if "reason" in one:
            table.add_row(name, one["reason"])
        elif "auc" in one:
            speeds = [speed for speed in one["trained_rows_per_second"] if speed]
            figures = f"{one['tables']:,}", f"{one['auc']:.5f}", f"{one['logloss']:.5f}"
            trained = f"{sorted(speeds)[len(speeds) // 2]:,}" if speeds else ""
            table.add_row(name, *figures, trained, f"{one['rows_per_second']['64']:,.0f}")
    return table


def main() -> None:
    options = _options()
    names = ("ways", "ratios", "methods", "epochs", "train_set", "seeds")
    one = OneModel("forms", options, {name: getattr(options, name) for name in names})
    forms = cache(partial(Forms, one, options))
    found: dict[str, dict[str, Any]] = {}
    for seed in range(options.seeds):
        step = f"beside-{seed}"
        found[step] = one.steps.run_of(step, partial(Forms.beside, seed=seed), forms)
        for way, ratio, name in product(options.ways, options.ratios, options.methods):
            if way == "log" and name in [UNTRAINED, *PRUNED]:
                continue  # numbers that were drawn are no reason to prune any
            step = f"{name}-{ratio:g}x-{way}-{seed}"
            make = partial(Forms.made, name=name, ratio=ratio, way=way, seed=seed)
            found[step] = one.steps.run_of(step, make, forms)
            console.print(rendered(found))
    print(one.record(found, seeds=range(options.seeds)))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="that forms begin from")
    made.add_argument("--ratios", nargs="+", type=float, default=[10.0, 50.0, 100.0])
    made.add_argument("--methods", nargs="+", default=[*PLANS, *methods.that_train(), *PRUNED])
    made.add_argument("--epochs", type=int, default=10, help="of training a form, at most")
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--train-set", action="append", default=[], help="a setting of that training")
    return made.parse_args()


if __name__ == "__main__":
    command(main)
