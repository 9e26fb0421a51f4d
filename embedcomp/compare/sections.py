"""Results brought into tables: one section a log, model and epochs, figures over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum, nan
from statistics import mean, stdev

from embedcomp.compare.cells import CONTROL, ORIGINAL, PLANNED, Epochs
from embedcomp.compare.results import Record
from embedcomp.planning.goal import ByteBudget

WHOLE = 1 << 40  # bytes of a made-up model, by which budgets are ordered


@dataclass(frozen=True)
class Spread:
    """A figure over seeds. std: sample standard deviation; None: there is one seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def std(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Group:
    """The results of one way to compress at one budget, by seed."""

    records: Sequence[Record]

    @property
    def made(self) -> list[Record]:
        return [record for record in self.records if record.reason is None]

    @property
    def seeds(self) -> frozenset[int]:
        return frozenset(record.seed for record in self.made)

    @property
    def reasons(self) -> list[str]:
        """Why some were not made."""
        return list(dict.fromkeys(r.reason for r in self.records if r.reason is not None))

    @property
    def auc(self) -> Spread:
        return Spread(tuple(r.auc if r.auc is not None else nan for r in self.made))

    @property
    def logloss(self) -> float:
        return _mean(r.logloss for r in self.made)

    @property
    def bytes(self) -> float:
        return _mean(r.bytes["total"] for r in self.made)

    def rows_per_second(self, batch: str) -> float:
        return _mean(r.rows_per_second.get(batch) for r in self.made)

    def minus(self, other: Group) -> Spread | None:
        """Differences in AUC, seed by seed; None where no seed has both."""
        theirs = {record.seed: record.auc for record in other.made}
        both = [(r.auc, theirs[r.seed]) for r in self.made if r.seed in theirs]
        found = tuple(a - b for a, b in both if a is not None and b is not None)
        return Spread(found) if found else None


@dataclass(frozen=True)
class Verdict:
    """The planned mix against the best single method at one budget.

    spread: of the AUC over seeds, the larger of both; None: one seed, which has none.
    """

    best: str  # the single method with the highest mean AUC
    difference: Spread
    spread: float | None

    def __str__(self) -> str:
        if self.spread is None:
            return "one seed: cannot be told"
        than_best = "better" if self.difference.mean > 0 else "worse"
        if abs(self.difference.mean) > self.spread:
            return than_best
        signs = {value > 0 for value in self.difference.values}
        always = len(signs) == 1 and 0.0 not in self.difference.values
        return f"within the spread{f', {than_best} at every seed' if always else ''}"


@dataclass(frozen=True)
class Section:
    """All results of one model on one log with the same epochs, and its originals."""

    records: Sequence[Record]
    epochs: Epochs

    @property
    def _first(self) -> Record:
        return self.records[0]

    @property
    def model(self) -> str:
        return self._first.model

    @property
    def split(self) -> str:
        return self._first.split

    @property
    def log(self) -> str:
        return str(self._first.data["name"])

    @property
    def title(self) -> str:
        return f"{self.model} on {self.log}, {self.trained}"

    @property
    def trained(self) -> str:
        """What epochs the compressed models got."""
        return str(self.epochs) or "not tuned"

    @property
    def reference(self) -> str:
        """What an AUC is held against: the original, with the same extra epochs if there are."""
        return CONTROL if self.epochs else ORIGINAL

    @cached_property
    def groups(self) -> dict[tuple[str, str], Group]:
        """By method and budget."""
        found: dict[tuple[str, str], list[Record]] = {}
        for record in sorted(self.records, key=lambda r: r.seed):
            found.setdefault((record.method, record.budget), []).append(record)
        return {key: Group(records) for key, records in found.items()}

    def group(self, method: str, budget: str = "") -> Group:
        return self.groups.get((method, budget), Group(()))

    @property
    def budgets(self) -> list[str]:
        """From the largest down."""
        found = {budget for _, budget in self.groups if budget}
        return sorted(found, key=lambda budget: -ByteBudget.parse(budget).of(WHOLE))

    @property
    def methods(self) -> list[str]:
        """The planned mix, then single methods by name."""
        found = {method for method, budget in self.groups if budget}
        return sorted(found, key=lambda method: (method != PLANNED, method))

    @property
    def planned_over(self) -> list[str]:
        """The methods that the mix chose from."""
        planned = [
            r for (method, _), g in self.groups.items() if method == PLANNED for r in g.records
        ]
        return list(dict.fromkeys(name for record in planned for name in _over(record)))

    def verdict(self, budget: str) -> Verdict | None:
        """None where there is no planned mix, or no single method with its seeds."""
        planned = self.group(PLANNED, budget)
        alone = {m: self.group(m, budget) for m in self.methods if m != PLANNED}
        able = {m: g for m, g in alone.items() if planned.seeds and g.seeds >= planned.seeds}
        if not able:
            return None
        best = max(able, key=lambda method: able[method].auc.mean)
        difference = planned.minus(able[best])
        if difference is None:
            return None
        stds = [g.auc.std for g in (planned, able[best])]
        spread = max(std for std in stds if std is not None) if None not in stds else None
        return Verdict(best, difference, spread)


def sections(records: Iterable[Record]) -> list[Section]:
    """Results by setup and epochs.

    Of several for one cell the newest counts, but for a mix that was planned over fewer methods.
    """
    setups: dict[str, dict[tuple[object, ...], Record]] = {}
    for record in records:
        cells = setups.setdefault(record.setup, {})
        cell = (record.seed, record.method, record.budget, record.epochs)
        if cell not in cells or len(_over(record)) >= len(_over(cells[cell])):
            cells[cell] = record
    found = []
    for newest in setups.values():
        of_setup = tuple(newest.values())
        every = {r.epochs for r in of_setup if r.method != ORIGINAL} or {Epochs()}
        found += [Section(_with(of_setup, epochs), epochs) for epochs in sorted(every)]
    return found


def _with(records: Iterable[Record], epochs: Epochs) -> list[Record]:
    """Results with these epochs, and the originals', which have none."""
    return [r for r in records if r.epochs == epochs or r.method == ORIGINAL]


def _over(record: Record) -> list[str]:
    """The methods that a mix was planned over."""
    return list(record.settings.get("methods", [])) if record.method == PLANNED else []


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fsum(known) / len(known) if known else nan
