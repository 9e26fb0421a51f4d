"""What each method is worth: plans without one of the methods that pay, or with one baseline more.

    python -m benchmarks.worth --log movielens_1m

A plan without a method that it did not choose is the plan that it was, so only chosen ones are left
out. Every plan that differs is carried out, untuned, and scored on the test split.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from benchmarks.steps import Steps
from embedcomp import methods, recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original
from embedcomp.planning.plan import Plan
from embedcomp.recipes.inspect import describe
from embedcomp.recipes.settings import CompressSettings
from embedcomp.swapping.heldout import HeldOut

BUDGETS = ("5x", "10x", "20x", "50x", "100x")


def sizes(made: Artifact, plan: Plan) -> dict[str, Any]:
    """Bytes of an artifact in parts, and by method how many are stored and how many resident."""
    found = describe(made)
    by_method: dict[str, Counter[str]] = defaultdict(Counter)
    for planned in plan.layers:
        resident = found["resident"].get(planned.layer, 0)
        by_method[planned.method] += Counter(stored=planned.bytes_after, resident=resident)
    return {"bytes": found["bytes"], "bytes_by_method": by_method}


class Mixes:
    """One trained model, and the plans of any mix of methods for it."""

    def __init__(self, original: Original, test: HeldOut, folder: Path):
        self.original, self.test, self.folder = original, test, folder

    def planned(self, budget: str, names: tuple[str, ...]) -> tuple[CompressSettings, Plan | None]:
        settings = CompressSettings(budget=budget, methods=names)
        plan = self.original.plan(settings)
        return settings, plan if isinstance(plan, Plan) else None

    def quality(self, settings: CompressSettings, plan: Plan | None, name: str) -> dict[str, Any]:
        """What a plan loses on the test split; nothing where there is no plan."""
        if plan is None:
            return {}
        made = self.original.compress(plan, settings, self.folder / name, recipes.quiet)
        assert isinstance(made, Artifact), made
        lost, _ = self.test.compared(made.model())
        return {
            "predicted_loss": plan.loss,
            "auc_loss": lost.auc_loss,
            "auc_error": lost.auc_error,
            "layers": dict(Counter(planned.method for planned in plan.layers)),
            **sizes(made, plan),
        }

    def at(self, budget: str, steps: Steps) -> dict[str, Any]:
        """The mix at a budget, and those with a method less or more that differ from it."""
        default = tuple(methods.names())
        settings, plan = self.planned(budget, default)
        ours = steps.run(f"{budget}-mix", partial(self.quality, settings, plan, f"{budget}-mix"))
        mixes = {
            f"without {name}": tuple(n for n in default if n != name) for name in ours["layers"]
        }
        baselines = [name for name in methods.every() if name not in default]
        mixes |= {f"with {name}": (*default, name) for name in baselines}
        mixes.pop("without keep", None)  # what no other method takes has to stay
        found = {"mix": ours}
        for said, names in mixes.items():
            one = steps.run(f"{budget}-{said}", partial(self._beside, budget, said, names, plan))
            if one != {"same": True}:
                found[said] = one
        return found

    def _beside(
        self, budget: str, said: str, names: tuple[str, ...], than: Plan | None
    ) -> dict[str, Any]:
        settings, plan = self.planned(budget, names)
        if plan is not None and than is not None and plan.layers == than.layers:
            return {"same": True}
        return self.quality(settings, plan, f"{budget}-{said}".replace(" ", "-"))


def rendered(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """By budget and mix, how much more AUC is lost than with the methods that pay."""
    table = Table("budget", "mix", "test AUC", "than the mix", "predicted loss")
    for budget, mixes in found.items():
        ours = mixes["mix"]
        for said, one in mixes.items():
            if not one:
                table.add_row(budget, said, "no plan", "", "")
                continue
            more = f"{ours['auc_loss'] - one['auc_loss']:+.5f}" if said != "mix" else ""
            lost = f"{-one['auc_loss']:+.5f}"
            ratio = f"{one['predicted_loss'] / ours['predicted_loss']:.3f}"
            table.add_row(budget, said, lost, more, ratio)
    return table


def main() -> None:
    options = _options()
    one = OneModel("worth", options, {"budgets": options.budgets})

    @cache
    def mixes() -> Mixes:
        settings = CompressSettings(budget=options.budgets[0])
        original = Original.measure(one.artifact, one.log, settings)
        return Mixes(original, one.test_rows(), one.folder / "made")

    found = {}
    for budget in options.budgets:
        found[budget] = one.steps.run(budget, lambda: mixes().at(budget, one.steps))  # noqa: B023
        console.print(rendered(found))
    print(one.record(found))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    return made.parse_args()


if __name__ == "__main__":
    command(main)
