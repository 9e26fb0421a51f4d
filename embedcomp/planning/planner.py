"""Which method each layer gets, so that the whole served model keeps to a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from fnmatch import fnmatchcase
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from embedcomp import methods
from embedcomp.errors import (
    BadSettings,
    BudgetTooSmall,
    EmbedcompError,
    LatencyTooSmall,
    LimitsTooSmall,
)
from embedcomp.log.schema import first_problem, unknown_setting
from embedcomp.modules.embedded import readers
from embedcomp.modules.sizes import module_bytes
from embedcomp.planning import grouping, solvers
from embedcomp.planning.choices import (
    Choice,
    Chosen,
    empty_bytes,
    total_bytes,
    total_nanoseconds,
)
from embedcomp.planning.latency import Timing
from embedcomp.planning.lowered import Lowered
from embedcomp.planning.plan import Plan, Planned
from embedcomp.planning.resident import resident
from embedcomp.planning.search import (
    SMALLEST,
    Goal,
    Known,
    LeastBytes,
    LeastLoss,
    LeastLossInTime,
    LeastTime,
    Search,
)
from embedcomp.planning.sharing import counted_once
from embedcomp.sensitivity.layer import Layer, Spec, TableSpec
from embedcomp.sensitivity.layers import Found, before_tuning
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.progress import Watch, quiet

MethodLike = Any  # a method's name, a mapping of "method" and its settings, or its Settings


def plan(
    model: nn.Module,
    found: Found,
    measured: Statistics,
    budget: int | None,
    names: Collection[str],
    single_valued: Collection[str] = (),
    *,
    most_loss: float | None = None,
    solver: str = "exact",
    rest: Collection[str] = (),
    to_rest: Collection[str] = (),
    known: Known | None = None,
    timing: Timing | None = None,
    lowered: Lowered | None = None,
    tuned: bool = False,
    watch: Watch = quiet,
) -> Plan:
    """The plan with the smallest predicted loss within the budget, or the smallest within a loss.

    Args:
        budget: bytes of the whole served model; None: there is a bound on the loss or on the time
            of a call instead.
        names: methods that may be used; a layer that none of them (or `rest`) takes is kept.
        single_valued: features with exactly one id in every row.
        most_loss: predicted increase of the mean log loss. The plan's budget is what it then takes.
        solver: one of embedcomp/planning/solvers.
        rest: methods for a layer that none of `names` takes.
        to_rest: layers that are left to those, whatever takes them.
        known: filled with what was found out about the layers, for further plans of them.
        timing: of the layers' choices; the plan keeps to its budget too.
        lowered: what predicts the bytes in a scorer's memory; None: the timing's, or nobody does.
        tuned: the compressed model will be, so what only pays then is tried as well.

    Raises:
        BadSettings: a method is none.
        BudgetTooSmall: even the smallest choices are larger.
        LatencyTooSmall: even the fastest ones take longer.
        LimitsTooSmall: no plan keeps to both bytes and time.
    """
    methods.refuse_unknown((*names, *rest))  # even if no layer were to need them
    found = measured.measured(found)
    if tuned:
        found = before_tuning(found)
    before = module_bytes(model)
    fixed = before - sum(layer.bytes for layer in found.layers.values())
    search = Search(
        found.layers,
        names,
        readers(model),
        set(single_valued),
        solvers.get(solver),
        rest,
        {} if known is None else known,
        timing,
        to_rest=to_rest,
        watch=watch,
    )
    goal = _goal(None if budget is None else budget - fixed, most_loss, search)
    chosen = grouping.best(search, goal)
    if chosen is None:
        raise _too_small(search, budget, fixed)
    after = fixed + total_bytes(chosen)
    lowered = timing.lowered if lowered is None and timing is not None else lowered
    held = None if lowered is None else resident(lowered, chosen)
    return Plan(
        budget_bytes=after if budget is None else budget,
        bytes_before=before,
        bytes_after=after,
        bytes_resident=None if held is None else sum(held.values()),
        layers=tuple(
            _planned(layer, chosen[name], None if held is None else held[name])
            for name, layer in found.layers.items()
        ),
        untouched=found.refused,
        single_valued=tuple(sorted(single_valued)),
        solver=solver,
        **({} if timing is None else _times(search, timing, chosen)),
    )


def _goal(most_bytes: int | None, most_loss: float | None, search: Search) -> Goal:
    timing = search.timing
    if timing is not None:
        assert most_loss is None, "one of the two is limited, the other one small"
        most = timing.allowed(_original_time(search, timing)) - timing.fixed
        return LeastLossInTime(most, math.inf if most_bytes is None else most_bytes)
    if most_bytes is not None:
        assert most_loss is None, "one of the two is limited, the other one small"
        return LeastLoss(most_bytes)
    assert most_loss is not None
    return LeastBytes(most_loss)


def _too_small(search: Search, budget: int | None, fixed: int) -> EmbedcompError:
    """Which limit nothing keeps to."""
    found = grouping.best(search, SMALLEST)
    assert found is not None, "any plan is within an infinite loss"
    smallest = fixed + total_bytes(found)
    if budget is not None and smallest > budget:
        sizes = {layer: choice.bytes for layer, choice in found.items()}
        largest = max(sizes.items(), key=lambda size: size[1], default=("no layer", 0))
        return BudgetTooSmall(budget, smallest, largest, fixed)
    timing = search.timing
    assert timing is not None, "no loss is too small for a plan that keeps every layer"
    asked = timing.budget
    most = timing.allowed(_original_time(search, timing))
    fastest = timing.fixed + total_nanoseconds(search.fastest())
    if fastest > most:
        microseconds = (n / 1000 for n in (most, fastest, timing.fixed))
        return LatencyTooSmall(next(microseconds), asked.rows, *microseconds)
    assert budget is not None
    within = search.best(LeastTime(budget - fixed))
    assert within is not None
    taken = (timing.fixed + total_nanoseconds(within)) / 1000
    return LimitsTooSmall(
        f"no plan was found that keeps to both {budget:,} bytes and a latency of {asked.text}: "
        f"within these bytes the fastest one is predicted to take {taken:,.1f} us; raise either "
        "budget or allow more methods"
    )


def _original_time(search: Search, timing: Timing) -> int:
    """Nanoseconds of a call of the original."""
    return timing.fixed + total_nanoseconds(search.kept())


def _times(search: Search, timing: Timing, chosen: Chosen) -> dict[str, Any]:
    """What a plan says of its time."""
    return {
        "latency_budget": timing.budget.text,
        "microseconds": (timing.fixed + total_nanoseconds(chosen)) / 1000,
        "microseconds_before": _original_time(search, timing) / 1000,
    }


def by_name(model: nn.Module, found: Found, wanted: Mapping[str, MethodLike]) -> Plan:
    """A plan that a person wrote down; nothing is predicted.

    Args:
        wanted: by pattern of layers' names (as in fnmatch), what is wanted of those that fit. The
            first pattern that fits a layer counts.

    Raises:
        BadSettings: a pattern fits no layer, or there is no such method or setting.
    """
    chosen = {}
    for name, layer in found.layers.items():
        pattern = next((p for p in wanted if fnmatchcase(name, p)), None)
        if pattern is not None:
            chosen[name] = _written_down(layer.spec, wanted[pattern])
    chosen = counted_once(chosen, found.layers)
    layers = [_planned(found.layers[name], choice) for name, choice in chosen.items()]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in found.layers):
            raise BadSettings(_no_layer(pattern, found))
    before = module_bytes(model)
    after = before - sum(planned.bytes_before - planned.bytes_after for planned in layers)
    return Plan(
        budget_bytes=after,
        bytes_before=before,
        bytes_after=after,
        layers=tuple(layers),
        untouched=found.refused,
        single_valued=(),
    )


def able(layer: Layer, wanted: MethodLike) -> bool:
    """Whether the method takes the layer. Raises BadSettings: there is none."""
    return bool(methods.get(_named(wanted)[0]).candidates(layer.spec))


def _named(wanted: MethodLike) -> tuple[str, dict[str, Any]]:
    """A method's name, and settings by their names.

    Raises:
        BadSettings: no method is named.
    """
    if isinstance(wanted, str):
        return wanted, {}
    if isinstance(wanted, Mapping):
        values = dict(wanted)
        if "method" not in values:
            raise BadSettings(f"the settings {values} name no method")
        return str(values.pop("method")), values
    name = type(wanted).__module__.rpartition(".")[2]
    known = *methods.every(), *methods.that_train()
    if name not in known or type(wanted) is not methods.get(name).Settings:
        raise BadSettings(
            f"{wanted!r} is neither a method's name, nor a mapping with its settings, nor its "
            "Settings"
        )
    return name, {f.name: getattr(wanted, f.name) for f in fields(wanted)}


def _written_down(spec: Spec, wanted: MethodLike) -> Choice:
    name, values = _named(wanted)
    method = methods.get(name)
    if not method.candidates(spec):
        raise BadSettings(f"{name} cannot take {spec.name}; `embedcomp.explain` lists what can")
    unknown = unknown_setting(method.Settings, values)
    if unknown:
        raise BadSettings(f"{name} for {spec.name} has {unknown}")
    try:
        settings = TypeAdapter(method.Settings).validate_python(values)
    except ValidationError as error:
        raise BadSettings(f"{name} for {spec.name}: {first_problem(error)}") from error
    return Choice(name, settings, empty_bytes(name, spec, settings), math.nan)


def _no_layer(pattern: str, found: Found) -> str:
    refused = [name for name in found.refused if fnmatchcase(name, pattern)]
    if refused:
        return f"{refused[0]} {found.refused[refused[0]]}"
    return f"no layer's name fits {pattern!r}; the layers are: {', '.join(found.layers)}"


def _planned(layer: Layer, choice: Choice, resident: int | None = None) -> Planned:
    rows, columns = layer.weight.shape
    return Planned(
        layer=layer.spec.name,
        kind="table" if isinstance(layer.spec, TableSpec) else "linear",
        shape=(rows, columns),
        method=choice.method,
        settings=asdict(choice.settings),
        bytes_before=layer.bytes,
        bytes_after=choice.bytes,
        loss=choice.loss,
        bytes_resident=resident,
    )
