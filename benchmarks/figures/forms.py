"""Figures of `benchmarks.forms` and `benchmarks.shapes`: methods that train, in tables alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, median
from typing import Any

from benchmarks.figures.markdown import plus_minus, table
from benchmarks.figures.record import Record, claim
from benchmarks.forms import PLANS, WAYS
from benchmarks.result import over_seeds

Made = list[dict[str, Any]]  # of each seed


@dataclass(frozen=True)
class Forms:
    """What a record of `benchmarks.forms` has, by method, ratio and what it begins from."""

    record: Record

    @property
    def ratios(self) -> list[float]:
        return sorted(self.record["settings"]["ratios"])

    @property
    def methods(self) -> list[str]:
        """The plans first, then methods in their order."""
        return sorted(self.record["settings"]["methods"], key=lambda name: name not in PLANS)

    def seeds(self, method: str, ratio: float, way: str) -> Made:
        """The figures of each seed that was run."""
        results = self.record["results"]
        steps = (f"{method}-{ratio:g}x-{way}-{seed}" for seed in self.record["seeds"])
        return [results[step] for step in steps if "auc" in results.get(step, {})]

    def beside(self, name: str) -> Made:
        """The original or the control, of each seed."""
        results = self.record["results"]
        return [results[f"beside-{seed}"][name] for seed in self.record["seeds"]]


def methods(*records: Record) -> list[str]:
    """AUC and log loss of every form, the bytes of those that cannot be so small, and speeds.

    Records of one log that differ in what forms begin from, or in their ratios.
    """
    forms = Forms(records[0])
    ratios = sorted({ratio for record in records for ratio in Forms(record).ratios})
    head = ["method", "begins from", *(f"{ratio:g}x" for ratio in ratios)]
    rows = [
        [name, "", _quality(forms.beside(name)), *[""] * (len(head) - 3), "", _scored(made)]
        for name in ("original", "control")
        if (made := forms.beside(name))
    ]
    every = [Forms(record) for record in records]
    names = list(dict.fromkeys(name for forms in every for name in forms.methods))
    for way, name in product(WAYS, names):
        made = [[one for f in every for one in f.seeds(name, ratio, way)] for ratio in ratios]
        if any(made):
            seeds = [one for of_ratio in made for one in of_ratio]
            cells = [_cell(of_ratio) for of_ratio in made]
            rows.append([f"`{name}`", way, *cells, _trained(seeds), _scored(seeds)])
    return table([*head, "trained rows/s", "scored rows/s"], rows, text=(0, 1))


def far_and_farther(record: Record, farther: Record) -> Iterator[float]:
    """What is lost to the control by trellis codes and by shared rows at the first record's ratio,
    and by shared rows at the second's."""

    def lost(record: Record, method: str) -> float:
        forms = Forms(record)
        (ratio,) = forms.ratios
        (made,), (control,) = forms.seeds(method, ratio, "model"), forms.beside("control")
        return control["auc"] - made["auc"]

    (original,), (control,) = (Forms(record).beside(name) for name in ("original", "control"))
    claim(lost(record, "trellis_coded") < control["auc"] - original["auc"], "better than before")
    others = [lost(farther, name) for name in Forms(farther).methods]
    claim(min(others) == lost(farther, "compositional"), "shared rows are the best")
    yield from (lost(record, "trellis_coded"), lost(record, "compositional"))
    yield lost(farther, "compositional")


def written(record: Record) -> list[str]:
    """Forms of `benchmarks.shapes`: bytes of the tables, AUC and log loss over seeds."""
    made: dict[str, Made] = {}
    for step, one in record["results"].items():
        name = step.rsplit(" ", 1)[0]
        for form, found in _apart(name, one):
            made.setdefault(form, []).append(found)
    rows = [[form, _bytes(seeds), _auc(seeds), _logloss(seeds)] for form, seeds in made.items()]
    return table(["form", "bytes of tables", "AUC", "log loss"], rows)


def published(record: Record) -> Iterator[float]:
    """What one pool wins over hashing at a half, a tenth and all of the rows; OptEmbed's share of
    the bytes of its full tables, and what it loses to them."""

    def auc(name: str) -> float:
        return mean(record["results"][f"{name} {seed}"]["auc"] for seed in record["seeds"])

    for share in ("0.5", "0.1", "1"):
        yield auc(f"unified {share}") - auc(f"hashed {share}")
    (small, *_), (full, *_) = (
        [record["results"][f"{name} {seed}"]["tables"] for seed in record["seeds"]]
        for name in ("optembed 4x", "full tables")
    )
    yield 100 * small / full
    yield auc("full tables") - auc("optembed 4x")


def _apart(name: str, one: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A step's forms by name: the original and the control are one step."""
    if "auc" in one:
        yield name, one
    elif "reason" not in one:
        yield from one.items()


def _cell(seeds: Made) -> str:
    """Of one method at one ratio."""
    if not seeds:
        return "-"
    floor = f" at {_bytes(seeds)} B" if any("floor" in one for one in seeds) else ""
    return _quality(seeds) + floor


def _quality(seeds: Made) -> str:
    return f"{_auc(seeds)}, {mean(one['logloss'] for one in seeds):.4f}"


def _auc(seeds: Made) -> str:
    return plus_minus(over_seeds([one["auc"] for one in seeds]))


def _logloss(seeds: Made) -> str:
    return plus_minus(over_seeds([one["logloss"] for one in seeds]))


def _bytes(seeds: Made) -> str:
    sizes = [one["tables"] if "tables" in one else one["bytes"]["tables"] for one in seeds]
    return f"{max(sizes):,}"


def _trained(every: Made) -> str:
    speeds = [speed for one in every for speed in one["trained_rows_per_second"] if speed]
    return f"{median(speeds):,.0f}" if speeds else ""


def _scored(every: Sequence[dict[str, Any]]) -> str:
    return f"{median(one['rows_per_second']['64'] for one in every):,.0f}"
