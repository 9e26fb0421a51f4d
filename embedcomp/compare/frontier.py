"""A frontier: one artifact a budget, beside simple baselines and the originals, in one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from embedcomp import methods, recipes
from embedcomp.artifact.artifact import Artifact
from embedcomp.compare.cells import CONTROL, ORIGINAL, PLANNED, Epochs
from embedcomp.compare.original import Clock, Original, Progress, Silent, of_plan, score
from embedcomp.compare.pictures import Curve, Level, Picture, Point, html, png
from embedcomp.compare.provenance import provenance
from embedcomp.errors import BadSettings
from embedcomp.log.click_log import ClickLog
from embedcomp.planning.goal import ByteBudget
from embedcomp.planning.plan import Plan
from embedcomp.recipes.evaluate import SPEED_BATCHES
from embedcomp.recipes.settings import BESIDE_ONE, CompressSettings
from embedcomp.support.files import remove, replacing
from embedcomp.support.progress import Doing, Watch, quiet

SIMPLE = ("half", "row_int", "svd", "drop_rare", "magnitude")  # how baselines' names begin
NAME = "frontier"

Plans = dict[str, Plan | str]  # by budget; or why there is none


def baselines() -> tuple[str, ...]:
    """The methods that anybody would try first."""
    return tuple(name for name in methods.every() if name.startswith(SIMPLE))


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """What a frontier is made of.

    settings: of every plan; its budget is not used.
    control: folder for the original that is trained on, where models are tuned.
    """

    original: Artifact
    log: ClickLog
    budgets: tuple[str, ...]
    settings: CompressSettings
    baselines: tuple[str, ...]
    split: str
    out: Path
    control: Path

    def measure(self, watch: Watch = quiet) -> Original:
        """The original's statistics, and what its plans share.

        Raises:
            BadLog: the log has no such split.
            BadSettings: a budget or a method is none.
        """
        self.log.pieces(self.split)
        if not self.budgets:
            raise BadSettings("the frontier has no budgets; write them as 2x,5x,10x")
        for budget in self.budgets:
            ByteBudget.parse(budget)
        methods.refuse_unknown(self.baselines)
        return Original.measure(self.original, self.log, self.settings, watch)

    def plans(self, measured: Original) -> Plans:
        """The plan for every budget.

        Raises:
            BadSettings: no budget can be met.
        """
        found = {budget: measured.plan(self._at(budget)) for budget in self.budgets}
        reasons = [reason for reason in found.values() if isinstance(reason, str)]
        if len(reasons) == len(found):
            raise BadSettings(f"none of the budgets can be met; at {self.budgets[0]}, {reasons[0]}")
        return found

    def make(
        self, measured: Original, plans: Plans, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Compress and score everything; write the artifacts, frontier.json and the pictures.

        Returns:
            What frontier.json holds.
        """
        progress = Silent() if progress is None else progress
        tuned = self.settings.trains
        progress.expect(1 + tuned + len(self.budgets) * (1 + len(self.baselines)), 0)
        points = [self._whole(ORIGINAL, progress)]
        if tuned:
            points.append(self._whole(CONTROL, progress))
        points += [self._planned(measured, b, plan, progress) for b, plan in plans.items()]
        for method in self.baselines:
            points += [self._baseline(measured, method, b, progress) for b in self.budgets]
        result = {
            "log": {"name": Path(self.log.path).name, "fingerprint": self.log.fingerprint()},
            "model": self.original.source.model,
            "split": self.split,
            "points": points,
            "settings": asdict(self.settings),
            **provenance(),
        }
        self._write(result)
        return result

    def _whole(self, name: str, progress: Progress) -> dict[str, Any]:
        """The original, or the control."""
        watch, clock = progress.begin(name), Clock()
        artifact = self.original
        if name == CONTROL:
            settings, out = self.settings, self.control
            artifact = clock.time(
                "train", lambda: recipes.control(artifact, self.log, settings, out, watch=watch)
            )
        watch(Doing("evaluating"))
        figures = clock.time("evaluate", lambda: score(artifact, self.log, self.split))
        point = {"method": name, "budget": "", "path": str(artifact.folder), **figures}
        return _told(point, clock.seconds, progress)

    def _planned(
        self, measured: Original, budget: str, plan: Plan | str, progress: Progress
    ) -> dict[str, Any]:
        """The artifact for one budget, which is kept."""
        watch, clock = progress.begin(f"{PLANNED} at {budget}"), Clock()
        point: dict[str, Any] = {"method": PLANNED, "budget": budget}
        if isinstance(plan, str):
            return _told({**point, "reason": plan}, {}, progress)
        settings, out = self._at(budget), self.out / budget.strip()
        control = Artifact.open(self.control) if settings.trains else None
        compressed = clock.time(
            "compress", lambda: measured.compress(plan, settings, out, watch, control)
        )
        if isinstance(compressed, str):
            return _told({**point, **of_plan(plan), "reason": compressed}, clock.seconds, progress)
        watch(Doing("evaluating"))
        figures = clock.time("evaluate", lambda: score(compressed, self.log, self.split))
        assert compressed.plan is not None
        point |= {**of_plan(compressed.plan), "path": str(compressed.folder), **figures}
        return _told(point, clock.seconds, progress)

    def _baseline(
        self, measured: Original, method: str, budget: str, progress: Progress
    ) -> dict[str, Any]:
        """One method alone where it can be, tuned alike; its artifact is not kept."""
        watch, scratch = progress.begin(f"{method} at {budget}"), self.out / ".scratch"
        settings = replace(self._at(budget), methods=(method,), rest=BESIDE_ONE)
        figures = measured.passing(settings, scratch, self.split, watch)
        remove(scratch)
        seconds = figures.pop("seconds")
        return _told({"method": method, "budget": budget, **figures}, seconds, progress)

    def _at(self, budget: str) -> CompressSettings:
        return replace(self.settings, budget=budget)

    def _write(self, result: Mapping[str, Any]) -> None:
        drawn = picture(result)
        png(drawn, self.out / f"{NAME}.png")
        html(drawn.title, [drawn], self.out / f"{NAME}.html")
        with replacing(self.out / f"{NAME}.json") as fresh:
            fresh.write_text(json.dumps(result, indent=1) + "\n")


def picture(result: Mapping[str, Any]) -> Picture:
    """AUC over bytes of the planned artifacts and the baselines."""
    curves: dict[str, list[Point]] = {}
    levels: dict[str, dict[str, Any]] = {}
    for point in result["points"]:
        if not point["budget"]:
            levels[point["method"]] = point
        elif "auc" in point:
            note = f"budget {point['budget']}, log loss {point['logloss']:.5f}"
            place = Point(point["bytes"]["total"], point["auc"], note=note)
            curves.setdefault(point["method"], []).append(place)
    title = f"{result['model']} on {result['log']['name']}, {result['split']} split"
    if epochs := _epochs(result["settings"]):
        title += f", {epochs}"
    return Picture(
        title=title,
        curves=[Curve(name, points, name == PLANNED) for name, points in curves.items()],
        levels=[Level(name, point["auc"]) for name, point in levels.items()],
        whole_bytes=levels[ORIGINAL]["bytes"]["total"],
    )


def _epochs(settings: Mapping[str, Any]) -> Epochs:
    """The epochs that settings as frontier.json has them ask for."""
    train, tune = (settings.get(how, {}).get("epochs", 0) for how in ("train", "tune"))
    return Epochs(train=train, from_log=settings.get("from_log", False), tune=tune)


def render(result: Mapping[str, Any]) -> list[RenderableType]:
    """Every point as a row of a table; why some are missing below it."""
    largest = str(max(SPEED_BATCHES))
    table = Table("method", "budget", title=f"AUC on the {result['split']} split")
    for column in ("bytes", "size", "AUC", "log loss", "predicted loss", f"rows/s at {largest}"):
        table.add_column(column, justify="right")
    original_bytes = result["points"][0]["bytes"]["total"]
    missing: list[RenderableType] = []
    for point in result["points"]:
        if "reason" in point:
            missing.append(f"{point['method']} at {point['budget']}: {point['reason']}")
            table.add_row(point["method"], point["budget"], *["-"] * 6)
        else:
            table.add_row(*_row(point, original_bytes, largest))
    return [table, *missing]


def _row(point: Mapping[str, Any], original_bytes: int, batch: str) -> Sequence[str]:
    size = point["bytes"]["total"]
    predicted = f"{point['predicted_loss']:.2e}" if "predicted_loss" in point else "-"
    quality = f"{point['auc']:.5f}", f"{point['logloss']:.5f}", predicted
    speed = f"{point['rows_per_second'][batch]:,.0f}"
    return (
        point["method"],
        point["budget"],
        f"{size:,}",
        f"1/{original_bytes / size:.1f}",
        *quality,
        speed,
    )


def _told(point: dict[str, Any], seconds: dict[str, float], progress: Progress) -> dict[str, Any]:
    name = f"{point['method']} at {point['budget']}" if point["budget"] else point["method"]
    if "reason" in point:
        progress.end(f"{name}: not made: {point['reason']}")
    else:
        progress.end(f"{name}: AUC {point['auc']:.5f}, {point['bytes']['total']:,} bytes")
    return {**point, "seconds": seconds}
