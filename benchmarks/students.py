"""Students in the original's place: taught by labels, by its scores, by both, and of shapes tried.

    python -m benchmarks.students --log movielens_1m

For each seed the original, its control of as many epochs as tuning has, and for each budget the
original compressed directly, a student of one shape for each weight of the teacher's scores (0 is
labels alone), and `--student auto`, all compressed to the same bytes and tuned on their own float
form. Choose by validation rows: the test split is scored when all is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from benchmarks import one_model
from benchmarks.one_model import OneModel
from benchmarks.script import command, console
from embedcomp import recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.original import Original, of_plan, score
from embedcomp.errors import LimitsTooSmall
from embedcomp.modules.sizes import model_bytes
from embedcomp.planning.goal import ByteBudget
from embedcomp.recipes.settings import AUTO, CompressSettings, read_changes, validated
from embedcomp.recipes.students import shapes
from embedcomp.swapping.settings import TuneSettings
from embedcomp.train.settings import TrainSettings

CHOSEN_BY, REPORTED = "valid", "test"
DIRECT = "direct"  # the original itself is compressed
FIGURES = ("auc", "logloss", "bytes", "rows_per_second")


class Students:
    """The original of one seed, its students, and what is made of them."""

    def __init__(self, one: OneModel, seed: int):
        self.one, self.seed, self.original = one, seed, one.of_seed(seed)
        self.place = one.folder / "made" / str(seed)
        self.measured = cache(self._measured)

    def settings(self, budget: str, student: str = "") -> CompressSettings:
        """How the original or a student of it is compressed, to the same bytes."""
        given = self.one.given
        tune = read_changes(given.tune_set, {"epochs": given.tune_epochs, "seed": self.seed})
        trained = read_changes(given.set, {"seed": self.seed})
        whole = model_bytes(self.original.model())["total"]
        return CompressSettings(
            budget=str(ByteBudget.parse(budget).of(whole)),
            student=student,
            student_train=validated(TrainSettings, trained, "--set"),
            tune=validated(TuneSettings, tune, "--tune-set"),
        )

    def start(self, name: str) -> Artifact:
        """What is compressed: the original, or a student by the weight of the original's scores."""
        if name == DIRECT:
            return self.original
        place, shape = self.place / f"student-{name}", self.one.given.student
        weights = {"distil": float(name), "seed": self.seed}
        return taught(self.one, self.original, place, shape, **weights)

    def _measured(self, name: str) -> Original:
        return Original.measure(self.start(name), self.one.log, self.settings("1x"))

    def compressed(self, name: str, budget: str) -> dict[str, Any]:
        """Figures on validation rows of what a student or the original is compressed to."""
        out = self.place / f"{budget}-{name}"
        if name == AUTO:
            return self._of_auto(self.settings(budget, AUTO), out)
        begun, settings = self.measured(name), self.settings(budget)
        plan = begun.plan(settings)
        made = plan if isinstance(plan, str) else begun.compress(plan, settings, out, recipes.quiet)
        if isinstance(made, str):
            return {"reason": made}
        before = score(begun.artifact, self.one.log, CHOSEN_BY)
        return self.figures(made) | {"floats": before}

    def _of_auto(self, settings: CompressSettings, out: Path) -> dict[str, Any]:
        try:
            made = recipes.with_student(self.original, self.one.log, settings, out)
        except LimitsTooSmall as error:
            return {"reason": str(error)}
        return self.figures(made) | {"shape": made.source.settings}

    def figures(self, made: Artifact) -> dict[str, Any]:
        """A model's figures on validation rows, and where it is for those of the test split."""
        about = {} if made.plan is None else of_plan(made.plan)
        return {**about, **score(made, self.one.log, CHOSEN_BY), "folder": str(made.folder)}

    def control(self) -> dict[str, Any]:
        """Figures of the original that is trained on for as many epochs as the others are tuned."""
        out, settings = self.place / "control", self.settings("1x")
        return self.figures(recipes.control(self.original, self.one.log, settings, out))


def taught(one: OneModel, original: Artifact, place: Path, shape: str, **changes: Any) -> Artifact:
    """A student of one shape, trained on labels and the original's scores unless it is there.

    Args:
        changes: of the trainer's settings.
    """
    (found,) = shapes(original, shape).values()
    known = original.source
    source = known.model_copy(update={"settings": {**known.settings, **found}}).complete()
    return one.trained(place, source, original, **changes)


def tested(one: OneModel, made: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a model on the test split."""
    if "folder" not in made:
        return {}
    found = score(Artifact.open(Path(made["folder"])), one.log, REPORTED)
    return {name: found[name] for name in FIGURES}


def rendered(found: Mapping[str, list[dict[str, Any]]]) -> Table:
    """A line a form: means over seeds, and what it loses to the control of the same seed."""
    table = Table("form", "bytes", "valid AUC", "in floats", "test AUC", "to control", "log loss")
    table.add_column("rows/s at 64")
    for name, of_seeds in found.items():
        if any("reason" in one for one in of_seeds):
            table.add_row(name, next(one["reason"] for one in of_seeds if "reason" in one))
            continue
        tests = [one["test"] for one in of_seeds]
        controls = [one["test"]["auc"] for one in found["control"]]
        lost = mean(t["auc"] - c for t, c in zip(tests, controls, strict=True))
        floats = [one["floats"]["auc"] for one in of_seeds if "floats" in one]
        table.add_row(
            name,
            f"{mean(t['bytes']['total'] for t in tests):,.0f}",
            f"{mean(one['auc'] for one in of_seeds):.5f}",
            f"{mean(floats):.5f}" if floats else "",
            f"{mean(t['auc'] for t in tests):.5f}",
            f"{lost:+.5f}",
            f"{mean(t['logloss'] for t in tests):.5f}",
            f"{mean(t['rows_per_second']['64'] for t in tests):,.0f}",
        )
    return table


def forms(one: OneModel) -> dict[str, Callable[[Students], dict[str, Any]]]:
    """What is made of each seed's original, by name."""
    made: dict[str, Callable[[Students], dict[str, Any]]] = {
        "original": lambda these: these.figures(these.original),
        "control": Students.control,
    }
    for budget in one.given.budgets:
        for name in (DIRECT, *one.given.weights):
            made[f"{budget}-{name}"] = partial(Students.compressed, name=name, budget=budget)
    return made


def main() -> None:
    options = _options()
    names = ("budgets", "weights", "student", "tune_epochs", "tune_set", "seeds")
    one = OneModel("students", options, {name: getattr(options, name) for name in names})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in forms(one)}
    for seed in range(options.seeds):
        these = cache(partial(Students, one, seed))
        for name, make in forms(one).items():
            found[name].append(one.steps.run_of(f"{name}-{seed}", make, these))
            console.print(f"{name}, seed {seed}: validation AUC {found[name][-1].get('auc')}")
    for name, of_seeds in found.items():
        for seed, made in enumerate(of_seeds):
            step = partial(tested, one, made)
            of_seeds[seed] = made | {"test": one.steps.run(f"{name}-{seed}-{REPORTED}", step)}
    console.print(rendered(found))
    print(one.record(found, seeds=range(options.seeds)))


def _options() -> argparse.Namespace:
    made = one_model.options(__doc__)
    made.add_argument("--budgets", nargs="+", default=["50x", "100x"], help="of the whole model")
    made.add_argument(
        "--weights",
        nargs="+",
        default=["0", "0.7", "1", AUTO],
        help=f"of the original's scores, for students of one shape; {AUTO}: of `--student {AUTO}`",
    )
    made.add_argument("--student", default="hidden=64,32,cross_layers=1", help="the one shape")
    made.add_argument("--tune-epochs", type=int, default=1)
    made.add_argument("--tune-set", action="append", default=[], help="a setting of tuning")
    made.add_argument("--seeds", type=int, default=3)
    return made.parse_args()


if __name__ == "__main__":
    command(main)
