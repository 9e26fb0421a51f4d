"""Which method each layer gets, so that the whole served model keeps to a number of bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

from torch import nn

from embedcomp.compress.choices import Choice
from embedcomp.compress.contract import Layer, TableSpec
from embedcomp.compress.knapsack import total_bytes
from embedcomp.compress.layers import Found
from embedcomp.compress.plan import Plan, Planned
from embedcomp.compress.search import Search
from embedcomp.compress.sizes import module_bytes
from embedcomp.compress.statistics import Statistics
from embedcomp.compress.swap import empty_like, on_meta
from embedcomp.errors import BudgetTooSmall
from embedcomp.served.embedded import readers


def plan(
    model: nn.Module,
    found: Found,
    measured: Statistics,
    budget: int,
    names: Collection[str],
    single_valued: Collection[str] = (),
) -> Plan:
    """The plan with the smallest predicted loss within the budget.

    Args:
        budget: bytes of the whole served model.
        names: methods that may be used; a layer that none of them takes is kept.
        single_valued: features with exactly one id in every row.

    Raises:
        BudgetTooSmall: even the smallest choices are larger.
    """
    found = measured.measured(found)
    before = module_bytes(model)
    fixed = before - sum(layer.bytes for layer in found.layers.values())
    search = Search(found.layers, names, readers(model), set(single_valued))
    chosen = search.best(budget - fixed)
    if chosen is None:
        raise BudgetTooSmall(budget, fixed + total_bytes(search.smallest()))
    made = Plan(
        budget_bytes=budget,
        bytes_before=before,
        bytes_after=fixed + total_bytes(chosen),
        layers=tuple(_planned(layer, chosen[name]) for name, layer in found.layers.items()),
        untouched=found.refused,
        single_valued=tuple(sorted(single_valued)),
    )
    built = module_bytes(empty_like(on_meta(model), made))
    assert built == made.bytes_after, (built, made.bytes_after)
    return made


def _planned(layer: Layer, choice: Choice) -> Planned:
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
    )
