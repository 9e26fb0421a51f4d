"""Which method each layer gets, so that the whole served model keeps to a number of bytes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.table import Table
from torch import nn

from embedcomp import methods
from embedcomp.compress.choices import Choice, module_bytes
from embedcomp.compress.contract import Layer, TableSpec
from embedcomp.compress.knapsack import total_bytes
from embedcomp.compress.layers import Found
from embedcomp.compress.search import Search
from embedcomp.compress.statistics import Statistics
from embedcomp.compress.swap import empty_like, on_meta
from embedcomp.errors import BadSettings, BudgetTooSmall
from embedcomp.served.embedded import readers
from embedcomp.served.table import CompressedTable

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


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
    loss: float  # predicted increase of the mean log loss

    @property
    def typed_settings(self) -> Any:
        """The settings as the method's own dataclass."""
        return methods.get(self.method).Settings(**self.settings)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done with every layer of a model."""

    budget_bytes: int
    bytes_before: int  # of the whole model
    bytes_after: int
    layers: tuple[Planned, ...]
    untouched: dict[str, str]  # reasons, by module name
    single_valued: tuple[str, ...]  # features whose decoders may be folded

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

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        layers = tuple(Planned(**{**v, "shape": tuple(v["shape"])}) for v in values["layers"])
        return cls(**{**values, "layers": layers, "single_valued": tuple(values["single_valued"])})


def parse_budget(text: str, original_bytes: int) -> int:
    """Bytes of "5x" (five times smaller), "20%", "4MiB", "300kB" or "123456".

    Raises:
        BadSettings: it is none of these, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*|%)", text.strip().replace(",", ""))
    number, unit = (float(match[1]), match[2].lower()) if match else (0.0, "")
    if number <= 0 or unit not in {*_UNITS, "x", "%"}:
        raise BadSettings(
            f"the budget {text!r} is not a positive size; write 5x, 20%, 4MiB, 300kB or bytes"
        )
    if unit == "x":
        return int(original_bytes / number)
    return int(original_bytes * number / 100) if unit == "%" else int(number * _UNITS[unit])


def model_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of all parameters and buffers: "total", of which "tables" and "dense"."""
    kinds = (CompressedTable, nn.EmbeddingBag, nn.Embedding)
    tables = nn.ModuleList(module for module in model.modules() if isinstance(module, kinds))
    total, in_tables = module_bytes(model), module_bytes(tables)
    return {"total": total, "tables": in_tables, "dense": total - in_tables}


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


def render(plan: Plan) -> Table:
    """The plan as a table for a person."""
    table = Table(title=_title(plan))
    table.add_column("layer", overflow="fold")
    for column in ("shape", "method", "settings"):
        table.add_column(column)
    for column in ("bytes before", "after", "predicted loss"):
        table.add_column(column, justify="right")
    for planned in plan.layers:
        settings = ", ".join(f"{name} {value}" for name, value in _chosen(planned))
        sizes = f"{planned.bytes_before:,}", f"{planned.bytes_after:,}"
        shape = " x ".join(str(n) for n in planned.shape)
        loss = f"{planned.loss:.2e}"
        table.add_row(planned.layer, shape, planned.method, settings, *sizes, loss)
    for name, reason in plan.untouched.items():
        table.add_row(name, "", "untouched", reason)
    return table


def _chosen(planned: Planned) -> list[tuple[str, Any]]:
    """The settings that are not the method's defaults."""
    defaults = {f.name: f.default for f in fields(methods.get(planned.method).Settings)}
    return [(name, v) for name, v in planned.settings.items() if v != defaults[name]]


def _title(plan: Plan) -> str:
    times = plan.bytes_before / max(plan.bytes_after, 1)
    return (
        f"{plan.bytes_before:,} to {plan.bytes_after:,} bytes (1/{times:.1f}; budget "
        f"{plan.budget_bytes:,}), predicted log loss +{plan.loss:.2e}"
    )
