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

from benchmarks import result
from benchmarks.auc_bound import test_rows, trained
from benchmarks.script import WORK, command, console, open_log, parser
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

    def __init__(self, original: Original, folder: Path):
        self.original, self.folder = original, folder
        self.test: HeldOut = test_rows(original)

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
    log = open_log(options.data, options.log)
    settings = {
        "model": options.model,
        "min_count": options.min_count,
        "train": options.set,
        "budgets": options.budgets,
    }
    folder = options.work / f"worth-{options.log}"
    steps = Steps(folder, settings)

    @cache
    def mixes() -> Mixes:
        opened = trained(log, options, options.trained or folder / "model")
        original = Original.measure(opened, log, CompressSettings(budget=options.budgets[0]))
        return Mixes(original, folder / "made")

    found = {}
    for budget in options.budgets:
        found[budget] = steps.run(budget, lambda: mixes().at(budget, steps))  # noqa: B023
        console.print(rendered(found))
    file = result.write(
        f"worth-{options.log}",
        data={"name": options.log, "rows": {split: log.rows(split) for split in log.schema.splits}},
        settings=settings,
        seeds=[0],
        results=found,
        folder=options.results,
    )
    print(file)


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--log", default="movielens_1m", help="its folder's name")
    made.add_argument("--model", default="dcnv2", help="of embedcomp")
    made.add_argument("--min-count", type=int, default=2, help="ids seen fewer times share a row")
    made.add_argument("--set", action="append", default=[], help="a setting of the trainer")
    made.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    made.add_argument("--trained", type=Path, help="folder of an original that is there already")
    made.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    return made.parse_args()


if __name__ == "__main__":
    command(main)
