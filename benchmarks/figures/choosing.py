"""The picture of all methods that were run in tables alone or in whole models, on all logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.figures.comparison import MIX, logs
from benchmarks.figures.forms import Forms
from benchmarks.figures.record import Record
from benchmarks.forms import PLANNED, UNTRAINED
from embedcomp.compare.pictures import COLOURS, DASHES

# What is shown for one log: how many times smaller its tables are, and AUC - control.
Points = list[tuple[float, float]]
LOWEST = -0.06  # of AUC - control; what loses more is of no use
PLANS = {UNTRAINED: "plan, post-training", PLANNED: "plan, trained"}


def picture(*records: Record) -> Any:
    """AUC lost over how many times smaller the tables are, a panel a log, a colour a method.

    Thick lines are plans, dashes methods that train, from the model; dots post-training methods.
    """
    panels = _panels(records)
    names = sorted({name for curves in panels.values() for name in curves}, key=_place)
    figure = Figure(figsize=(5 * len(panels) + 4, 6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for one, (log, curves) in zip(axes, panels.items(), strict=True):
        for name in names:
            if name in curves:
                _draw(one, name, curves[name], names)
        one.axhline(0.0, color="grey", linewidth=0.8)
        one.set(title=log, xscale="log", xlabel="times smaller tables")
        one.set_yscale("symlog", linthresh=1e-3)
        one.set(ylim=(LOWEST, 2e-3))
        one.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        one.xaxis.set_minor_formatter(lambda value, _: "")
        one.grid(alpha=0.3)
    axes[0].set_ylabel("AUC - control")
    lines = (line for one in axes for line in one.get_lines())
    shown = {line.get_label(): line for line in lines if line.get_label() in names}
    beside = {"loc": "outside right center", "ncols": 2, "fontsize": "x-small", "frameon": False}
    figure.legend(shown.values(), shown.keys(), **beside)
    return figure


def _panels(records: Sequence[Record]) -> dict[str, dict[str, Points]]:
    """Curves by log and by name."""
    panels: dict[str, dict[str, Points]] = {}
    for record in records:
        found = _of_forms(record) if record["benchmark"].startswith("forms") else _alone(record)
        panel = panels.setdefault(record["data"]["name"], {})
        for name, points in found:
            panel.setdefault(name, []).extend(points)
    return panels


def _of_forms(record: Record) -> Iterator[tuple[str, Points]]:
    """Forms from the model, whose tables alone are smaller."""
    forms = Forms(record)
    (original, control) = (forms.beside(name) for name in ("original", "control"))
    whole = mean(one["bytes"]["tables"] for one in original)
    beside = mean(one["auc"] for one in control)
    for name in forms.methods:
        points = []
        for ratio in forms.ratios:
            if made := forms.seeds(name, ratio, "model"):
                times = whole / mean(one["tables"] for one in made)
                points.append((times, mean(one["auc"] for one in made) - beside))
        yield PLANS.get(name, f"{name} (trained)"), points


def _alone(record: Record) -> Iterator[tuple[str, Points]]:
    """Post-training methods that were each alone in a whole model."""
    (log,) = logs([record])
    original = log.seeds("original")
    whole = mean(one["bytes"]["tables"] for one in original.values())
    names = set().union(*(log.tried(budget) for budget in log.budgets())) - {MIX}
    for name in sorted(names):
        made = [log.seeds(name, budget) for budget in log.budgets()]
        yield (
            name,
            [
                (
                    whole / mean(one["bytes"]["tables"] for one in seeds.values()),
                    mean(one["auc"] - original[seed]["auc"] for seed, one in seeds.items()),
                )
                for seeds in made
                if seeds
            ],
        )


def _place(name: str) -> tuple[bool, bool, str]:
    """Plans first, then methods that train, then others."""
    return name not in PLANS.values(), "(trained)" not in name, name


def _draw(axes: Any, name: str, points: Points, names: Sequence[str]) -> None:
    points = sorted(points)
    x, y = zip(*points, strict=True) if points else ((), ())
    if name in PLANS.values():
        dashes = "solid" if name == PLANS[PLANNED] else "dotted"
        axes.plot(x, y, label=name, color="#000000", linewidth=2.5, linestyle=dashes, marker="o")
        return
    place = names.index(name)
    colour, trained = COLOURS[place % len(COLOURS)], "(trained)" in name
    axes.plot(
        x,
        y,
        label=name,
        color=colour,
        linestyle=DASHES[1] if trained else DASHES[2],
        marker="s" if trained else ".",
        linewidth=1.2,
        markersize=4,
    )
