"""One artifact of ordered ranks served at several budgets, against models compressed to each.

    python -m benchmarks.ordered --log movielens_1m

The artifact has nearly all ranks of all layers that can have ordered ones, and is scored by what
serves it, opened at each budget; beside it are models compressed apart by ordered_rank alone,
trained as long, and the best plan of methods that need no training, untuned and tuned. Codes of a
smaller form have to be bytes of the file. Figures are those of the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.special import logit

from benchmarks import one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original, of_plan, score
from embedcomp.errors import BadSettings
from embedcomp.methods.trained import ordered_rank
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning import planner
from embedcomp.planning.plan import Plan
from embedcomp.recipes.settings import CompressSettings, read_changes, validated
from embedcomp.recipes.verify import LARGEST, SMALLEST
from embedcomp.scorer.scorer import Scorer
from embedcomp.storage.names import NestedStorage
from embedcomp.support.mapped import mapped
from embedcomp.support.metrics import Quality
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import FormTrainSettings

METHOD = "ordered_rank"
SPLIT = "test"
STORAGE: NestedStorage = "column_int8"  # of what serves all budgets


class Ways:
    """The ways of getting one trained model into each of the budgets."""

    def __init__(self, one: OneModel, seed: int):
        self.one, self.seed, self.place = one, seed, one.folder / "made" / str(seed)
        artifact = one.of_seed(seed)
        self.original = Original.measure(artifact, one.log, CompressSettings(budget="1x"))

    def training(self, budget: str) -> CompressSettings:
        """Ordered ranks alone, trained."""
        given = self.one.given
        known = {"epochs": given.epochs, "seed": self.seed}
        train = validated(FormTrainSettings, read_changes(given.train_set, known), "--train-set")
        return CompressSettings(budget=budget, methods=(METHOD,), train=train)

    def whole(self) -> dict[str, Any]:
        """What serves all budgets: every layer with the most ranks that make it smaller."""
        planning = self.original.planning
        offered = {
            name: [s for s in ordered_rank.candidates(layer.spec) if s.storage == STORAGE]
            for name, layer in planning.found.layers.items()
        }
        wanted = {n: max(some, key=lambda s: s.rank) for n, some in offered.items() if some}
        plan = planner.by_name(planning.model, planning.found, wanted)
        return self._made(plan, self.training("1x"), "whole")

    def apart(self, budget: str) -> dict[str, Any]:
        """Ordered ranks of a plan within one budget."""
        settings = self.training(budget)
        return self._made(self.original.plan(settings), settings, f"apart-{budget}")

    def planned(self, budget: str, epochs: int) -> dict[str, Any]:
        """The best plan of the methods that need no training, tuned for so many epochs."""
        known = {"epochs": epochs, "seed": self.seed}
        tune = validated(TuneSettings, read_changes(self.one.given.tune_set, known), "--tune-set")
        settings = CompressSettings(budget=budget, tune=tune)
        return self._made(self.original.plan(settings), settings, f"planned-{budget}-{epochs}")

    def _made(self, plan: Plan | str, settings: CompressSettings, name: str) -> dict[str, Any]:
        """Figures of a plan, or why it is none or cannot be carried out."""
        if isinstance(plan, str):
            return {"reason": plan}
        made = self.original.compress(plan, settings, self.place / name, recipes.quiet)
        if isinstance(made, str):
            return {"reason": made}
        return {**of_plan(plan), **score(made, self.one.log, SPLIT), "folder": str(made.folder)}


def served(one: OneModel, folder: Path, budget: str) -> dict[str, Any]:
    """Figures of an artifact as it is served within a budget, or why it is not."""
    try:
        scorer = Scorer.open(folder, budget=budget)
    except BadSettings as error:
        return {"reason": str(error)}
    within, quality = Artifact.open(folder).within(budget), Quality()
    for piece in one.log.pieces(SPLIT):
        for rows in one.log.read(piece):
            scores = scorer.score(rows).astype(np.float64).clip(SMALLEST, LARGEST)
            quality.add(logit(scores), rows[one.log.schema.label].to_numpy())
    return {
        **quality.to_dict(),
        "bytes": model_bytes(within.model()),
        "resident": sum(scorer.resident.values()),
        "ranks": dict(within.ranks),
        "same_bytes": same_bytes(within),
    }


def same_bytes(within: Artifact) -> bool:
    """Whether the codes of every layer that is cut are the first ones of the file, to the byte."""
    whole, arrays = mapped(within.tensors_file), within.arrays()
    named = [
        f"{layer}.{part}.stored"
        for layer in within.ranks
        for part in ("stored", "first")
        if f"{layer}.{part}.stored" in arrays
    ]
    assert len(named) == len(within.ranks)
    cuts = ((arrays[name], whole[name]) for name in named)
    return all(cut.tobytes() == file[:, : cut.shape[1]].tobytes() for cut, file in cuts)


def rendered(found: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("model", "bytes", "test AUC", "log loss", "the same bytes")
    for name, one in found.items():
        if "reason" in one:
            table.add_row(name, one["reason"])
            continue
        size, same = f"{one['bytes']['total']:,}", str(one.get("same_bytes", ""))
        table.add_row(name, size, f"{one['auc']:.5f}", f"{one['logloss']:.5f}", same)
    return table


def forms(
    given: argparse.Namespace,
) -> dict[str, Callable[[Ways], dict[str, Any]]]:
    """What a seed's original is compressed to, by name."""
    made: dict[str, Callable[[Ways], dict[str, Any]]] = {"whole": Ways.whole}
    for budget in given.budgets:
        made[f"apart-{budget}"] = partial(Ways.apart, budget=budget)
        for epochs in given.tune_epochs:
            name = f"planned-{budget}-tuned-{epochs}"
            made[name] = partial(Ways.planned, budget=budget, epochs=epochs)
    return made


def main() -> None:
    options = _options()
    names = ("budgets", "epochs", "train_set", "tune_epochs", "tune_set", "seeds")
    one = OneModel("ordered", options, {name: getattr(options, name) for name in names})
    found: dict[str, dict[str, Any]] = {}
    for seed in range(options.seeds):
        ways = cache(partial(Ways, one, seed))
        for name, make in forms(options).items():
            step = f"{name}-{seed}"
            found[step] = one.steps.run_of(step, make, ways)
            console.print(rendered(found))
        whole = found[f"whole-{seed}"]
        for budget in options.budgets if "folder" in whole else ():
            step = f"served-{budget}-{seed}"
            serve = partial(served, one, Path(whole["folder"]), budget)
            found[step] = one.steps.run(step, serve)
    console.print(rendered(found))
    print(one.record(found, seeds=range(options.seeds)))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--budgets", nargs="+", default=["5x", "10x", "20x", "30x"])
    made.add_argument("--epochs", type=int, default=15, help="of training ordered ranks, at most")
    made.add_argument("--train-set", action="append", default=[], help="a setting of that training")
    made.add_argument("--tune-epochs", nargs="+", type=int, default=[0, 1], help="of the plans")
    made.add_argument("--tune-set", action="append", default=[], help="a setting of tuning")
    made.add_argument("--seeds", type=int, default=1)
    return made.parse_args()


if __name__ == "__main__":
    command(main)
