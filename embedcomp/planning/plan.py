"""A plan: what is done with every layer of a model, as a value that is stored and shown.

An artifact's is shown without torch too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from embedcomp.sensitivity.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is done with one layer."""

    layer: str  # module name
    kind: str  # "table" or "linear"
    shape: tuple[int, int]  # of its weight, before decoders are folded into it
    method: str
    settings: dict[str, Any]
    bytes_before: int
    bytes_after: int
    loss: float  # predicted increase of the mean log loss; NaN where nobody predicted it
    bytes_resident: int | None = None  # predicted, of its numbers in a scorer's memory; None:
    # nobody predicted it, or torch scores

    @property
    def typed_settings(self) -> Any:
        """The settings as the method's own dataclass."""
        from embedcomp import methods

        values = {n: tuple(v) if isinstance(v, list) else v for n, v in self.settings.items()}
        return methods.get(self.method).Settings(**values)  # JSON has no tuples


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found on held-out rows when a plan was carried out."""

    rows: int
    where: str  # the rows' split
    auc_loss: float  # decrease of the AUC
    auc_error: float  # standard error of that
    bias: str = ""  # parameter that is added to every logit; "": there is none
    shift: float = 0.0  # added to it, so that the mean score is the original's
    score_error: float | None = None  # standard error of the mean score on other rows, relative to
    # the mean score; None: it was not looked at

    def __str__(self) -> str:
        auc = (
            "AUC not measured"
            if math.isnan(self.auc_loss)
            else (
                f"measured AUC {-self.auc_loss:+.2e} (standard error {self.auc_error:.1e}) "
                f"on {self.rows:,} {self.where} rows"
            )
        )
        if self.score_error is None:
            return auc
        if not self.bias:
            return f"{auc}, mean score not kept: the model has no bias that is in every logit"
        return f"{auc}, mean score kept by {self.bias} {self.shift:+.4f} ({self._calibration})"

    @property
    def _calibration(self) -> str:
        assert self.score_error is not None
        return f"on other rows to {2 * self.score_error:.2%}, two standard errors"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a short run made of one of several plans."""

    name: str  # of the plan
    bytes: int
    epochs: float  # of the run; less than one: over so many of the rows
    auc: float = math.nan  # on validation rows
    logloss: float = math.nan
    refused: str = ""  # why the plan could not be carried out

    def __str__(self) -> str:
        if self.refused:
            return f"{self.name}: {self.bytes:,} bytes, cannot be carried out: {self.refused}"
        return (
            f"{self.name}: {self.bytes:,} bytes, AUC {self.auc:.5f}, log loss {self.logloss:.5f} "
            f"after {self.epochs:.2g} epochs"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done with every layer of a model."""

    budget_bytes: int
    bytes_before: int  # of the whole model
    bytes_after: int
    layers: tuple[Planned, ...]
    untouched: dict[str, str]  # reasons, by module name
    single_valued: tuple[str, ...]  # features whose decoders may be folded
    solver: str = "exact"  # that chose
    max_auc_loss: float | None = None  # that was asked for in the place of a budget
    auc_loss: float | None = None  # predicted decrease of the AUC; None: scores were not at hand
    outcome: Outcome | None = None  # once it was carried out
    latency_budget: str = ""  # of a call, as it was asked for
    microseconds: float | None = None  # predicted, of such a call; None: nobody asked
    microseconds_before: float | None = None  # predicted, of the original
    measured_microseconds: float | None = None  # of such a call, once the plan was carried out
    measured_microseconds_before: float | None = None  # of the original, in turns with it
    measured_error: float | None = None  # of the ratio of these two, relative
    bytes_resident: int | None = None  # of the whole model, predicted as those of its layers are
    name: str = ""  # among others
    others: tuple[Plan, ...] = ()  # that short runs are to choose among too
    trials: tuple[Trial, ...] = ()  # that chose this one among others
    measured: Statistics | None = field(default=None, repr=False, compare=False)  # what it was made
    # of, where it is carried out in the same process; not stored with the plan

    @property
    def tables(self) -> list[Planned]:
        return [planned for planned in self.layers if planned.kind == "table"]

    @property
    def linears(self) -> list[Planned]:
        return [planned for planned in self.layers if planned.kind == "linear"]

    @property
    def loss(self) -> float:
        """Predicted increase of the mean log loss."""
        return sum(planned.loss for planned in self.layers)

    @property
    def times_allowed(self) -> float | None:
        """The measured time over that of the latency budget; None: it was not measured."""
        if self.measured_microseconds is None or self.measured_microseconds_before is None:
            return None
        from embedcomp.planning.goal import LatencyBudget

        asked = LatencyBudget.parse(self.latency_budget)
        return asked.share(self.measured_microseconds_before, self.measured_microseconds)

    @property
    def in_time(self) -> bool:
        """The latency budget is not missed by more than what the measurement is off by."""
        times = self.times_allowed
        return times is None or times <= 1 + (self.measured_error or 0.0)

    @property
    def missed(self) -> str:
        """A sentence that says by how much the latency budget is missed; empty: it is kept."""
        if self.in_time:
            return ""
        return (
            f"the latency budget {self.latency_budget} is missed: a call is measured at "
            f"{self.measured_microseconds:,.1f} us, {self.times_allowed:.2f} times what that "
            "allows, and no plan that was tried is nearer to it; raise the budget or allow more "
            "methods"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        values = asdict(replace(self, measured=None, others=()))
        del values["measured"]
        return {**values, "others": [one.to_dict() for one in self.others]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        layers = tuple(_planned(**layer) for layer in values["layers"])
        outcome = values.get("outcome")
        converted = {
            "layers": layers,
            "single_valued": tuple(values["single_valued"]),
            "outcome": None if outcome is None else Outcome(**outcome),
            "others": tuple(map(cls.from_dict, values.get("others", ()))),
            "trials": tuple(Trial(**trial) for trial in values.get("trials", ())),
        }
        return cls(**{**values, **converted})


RENAMED = {"float16": "half"}  # methods, since a plan was stored


def _planned(method: str, shape: Sequence[int], **values: Any) -> Planned:
    rows, columns = shape
    return Planned(method=RENAMED.get(method, method), shape=(rows, columns), **values)


def render(plan: Plan, resident: Mapping[str, int] | None = None) -> Table:
    """The plan as a table for a person.

    Args:
        resident: bytes in a scorer's memory by layer, where they were counted; None: as predicted.
    """
    if resident is None and plan.bytes_resident is not None:
        resident = {planned.layer: planned.bytes_resident or 0 for planned in plan.layers}
    table = Table(title=_title(plan), caption=_caption(plan) or None, caption_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("shape", "method", "settings"):
        table.add_column(column)
    last = ("predicted loss",) if resident is None else ("resident", "predicted loss")
    for column in ("bytes before", "after", *last):
        table.add_column(column, justify="right")
    for planned in plan.layers:
        settings = told(planned.method, planned.settings)
        sizes = [f"{planned.bytes_before:,}", f"{planned.bytes_after:,}"]
        if resident is not None:
            sizes.append(f"{resident.get(planned.layer, 0):,}")
        shape = " x ".join(str(n) for n in planned.shape)
        loss = f"{planned.loss:.2e}"
        table.add_row(planned.layer, shape, planned.method, settings, *sizes, loss)
    for name, reason in plan.untouched.items():
        table.add_row(name or "(the model)", "", "untouched", reason)
    return table


def told(method: str, settings: Mapping[str, Any]) -> str:
    """The settings that are not the method's defaults, for a person."""
    defaults: dict[str, Any] = {}
    if find_spec("torch") is not None:  # which methods are written in
        from embedcomp import methods

        defaults = {f.name: f.default for f in fields(methods.get(method).Settings)}
    return ", ".join(
        f"{n} {v}" for n, v in settings.items() if n not in defaults or v != defaults[n]
    )


def _caption(plan: Plan) -> str:
    """What is wrong with the plan, and what it is or was tried beside."""
    lines = [plan.missed] if plan.missed else []
    if plan.others:
        losses = [f"{one.name} (predicted loss {one.loss:.2e})" for one in (plan, *plan.others)]
        lines.append(f"short runs choose among {len(losses)} plans: {', '.join(losses)}")
    if plan.trials:
        lines += [f"{plan.name}, chosen by short runs:", *map(str, plan.trials)]
    return "\n".join(lines)


def _title(plan: Plan) -> str:
    times = plan.bytes_before / max(plan.bytes_after, 1)
    asked = f"budget {plan.budget_bytes:,}"
    if plan.latency_budget and plan.budget_bytes == plan.bytes_after:
        asked = "no budget"
    if plan.max_auc_loss is not None:
        asked = f"AUC loss at most {plan.max_auc_loss:g}"
    sizes = f"{plan.bytes_before:,} to {plan.bytes_after:,} bytes (1/{times:.1f}; {asked})"
    if plan.bytes_resident is not None:
        sizes += f", {plan.bytes_resident:,} resident"
    auc = "" if plan.auc_loss is None else f", AUC -{plan.auc_loss:.2e}"
    found = "" if plan.outcome is None else f"; {plan.outcome}"
    return f"{sizes}, predicted log loss +{plan.loss:.2e}{auc}{_latency(plan)}{found}"


def _latency(plan: Plan) -> str:
    if plan.microseconds is None:
        return ""
    before = f"{plan.microseconds_before:,.1f} to " if plan.microseconds_before else ""
    predicted = f", {before}{plan.microseconds:,.1f} us a call (budget {plan.latency_budget}"
    if plan.measured_microseconds is None or plan.measured_microseconds_before is None:
        return f"{predicted})"
    times = plan.measured_microseconds_before / plan.measured_microseconds
    return (
        f"{predicted}; measured {plan.measured_microseconds_before:,.1f} to "
        f"{plan.measured_microseconds:,.1f} us, {times:.2f}x ± {plan.measured_error:.0%})"
    )
