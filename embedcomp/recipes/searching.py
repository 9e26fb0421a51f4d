"""The stage of training in which methods search for better settings of a plan's layers.

The model is trained with its own layers, but for those of such methods, each of which stands as
its method has it searched. Decoders are not folded and nothing else is rounded then: what is
searched for must not depend on that. Then every method settles all of its layers at once, within
the bytes that the plan gave them and the linear layers that their decoders are folded into.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from embedcomp import methods
from embedcomp.errors import BadSettings
from embedcomp.kernels.threads import one_thread
from embedcomp.modules.embedded import Block, Reader, can_fold, readers
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import Choice, empty_bytes, empty_on_meta
from embedcomp.planning.plan import Plan, Planned
from embedcomp.planning.solvers import exact
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Room,
    SearchedTable,
    Searches,
    Searching,
)
from embedcomp.sensitivity.layers import Found, find
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.progress import Watch
from embedcomp.swapping import swap, tune
from embedcomp.swapping.heldout import HeldOut
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings

SHARE = 3  # one in so many epochs is the search's
FITNESS_ROWS = 16_384  # held-out rows that settings are compared on

Training = TypeVar("Training", bound=TrainSettings)


@dataclass(frozen=True)
class Start:
    """What a plan is carried out on.

    model: of the original's structure.
    found, measured: its layers, and statistics of them.
    history: of a search that led to it.
    """

    model: nn.Module
    found: Found
    measured: Statistics
    plan: Plan
    history: list[dict[str, Any]] = field(default_factory=list)


def searches(plan: Plan) -> bool:
    """Whether some of the plan's layers are searched for."""
    return bool(_by_method(plan))


def stages(settings: Training) -> tuple[Training, Training]:
    """Settings of the search and of the final stage, each of an epoch at least."""
    first = max(1, round(settings.epochs / SHARE))
    final = max(1, settings.epochs - first)
    return replace(settings, epochs=first), replace(settings, epochs=final)


def search(
    begin: Start,
    original: Mapping[str, Layer],
    teacher: nn.Module | None,
    data: Data,
    held: HeldOut,
    settings: TrainSettings,
    folder: Path,
    watch: Watch,
) -> Start:
    """Train the layers that are searched for, and settle them.

    A run that was killed goes on from its checkpoints in `folder`. What follows the training takes
    seconds and always gives the same, so nothing is kept of it.

    Args:
        begin: what training begins with; not changed.
        original: the layers that losses are predicted on, with their statistics.
        settings: of this stage.

    Returns:
        What the final form begins with.

    Raises:
        BadLog: held-out rows are too few to tell settings apart.
    """
    few = held.first(FITNESS_ROWS)
    few.refuse_one_kind()
    supernet, layers = copy.deepcopy(begin.model), begin.measured.measured(begin.found).layers
    tables = _put_in(supernet, begin.plan, layers)
    swap.thaw(supernet, tune.FLOATS)
    history = fit(
        supernet,
        data,
        settings,
        folder,
        teacher=teacher,
        watch=watch,
        step="searching for the form",
        stage="search",
    )

    def score() -> float:
        return few.quality_of(supernet).auc

    plan = begin.plan
    with one_thread(), torch.no_grad():
        for name, group in _by_method(plan).items():
            sizes = _Sizes(begin.model, layers, plan)
            most = sizes.of({p.layer: p.typed_settings for p in group})
            room = Room(sizes.of, most, knapsack, score, settings.seed, watch)
            settled = _searching(name).settle({p.layer: tables[p.layer] for p in group}, room)
            plan = sizes.rewritten(settled, original)
    assert plan.bytes_after <= begin.plan.bytes_after, (plan, begin.plan)
    told = [{"stage": "search", **entry} for entry in history]
    return replace(_left(begin, supernet, tables), plan=plan, history=told)


def _left(begin: Start, supernet: nn.Module, tables: Mapping[str, SearchedTable]) -> Start:
    """The model as the search left it, or as it began; each table knows its search."""
    model, found = begin.model, begin.found
    for name in tables:  # has its place in the model again, with numbers that nobody reads
        supernet.set_submodule(name, model.get_submodule(name))
    if not all(table.settings.start == "initial" for table in tables.values()):
        model, found = supernet, _as_trained(found, supernet)
    searched = {n: _begun(begin.found.layers[n], table) for n, table in tables.items()}
    return replace(begin, model=model, found=replace(found, layers={**found.layers, **searched}))


def _as_trained(found: Found, supernet: nn.Module) -> Found:
    """The layers with the numbers that the supernet has."""
    trained = find(supernet, {}).layers
    layers = {
        name: replace(
            layer, weight=trained[name].weight, bias=trained[name].bias, drawn=False, _shared={}
        )
        for name, layer in found.layers.items()
    }
    return replace(found, layers=layers)


def _begun(layer: Layer, table: SearchedTable) -> Layer:
    """A layer that was searched, as its form begins."""
    layer = replace(layer, searched=table.module, _shared={})
    if table.settings.start == "initial":
        return layer
    master, index = table.module.stored.master, table.module.index
    assert master is not None
    weight = master.detach()
    if index is not None:
        weight = weight[index(torch.arange(table.module.rows))]
    return replace(layer, weight=weight, drawn=False)


def knapsack(options: Mapping[Any, Sequence[tuple[int, float]]], most: float) -> dict[Any, int]:
    """The place of one option of each list, so that losses are least within so many bytes."""
    layers = {
        str(key): [Choice("", place, *option) for place, option in enumerate(found)]
        for key, found in options.items()
    }
    chosen = exact.least_loss(layers, most)
    assert chosen is not None, "what was planned is within the bytes"
    return {key: chosen[str(key)].settings for key in options}


def _put_in(model: nn.Module, plan: Plan, layers: Mapping[str, Layer]) -> dict[str, SearchedTable]:
    """Put what is searched in the place of the plan's layers."""
    found = {}
    for planned in _searched(plan):
        layer, settings = layers[planned.layer], planned.typed_settings
        module = _searching(planned.method).searching(layer, settings)
        if swap.begins_far(layer, settings):
            swap.begin_far(module)
        model.set_submodule(planned.layer, module.train(model.training))
        found[planned.layer] = SearchedTable(layer, settings, module)
    return found


def _searched(plan: Plan) -> list[Planned]:
    return [p for p in plan.layers if isinstance(p.typed_settings, Searches)]


def _by_method(plan: Plan) -> dict[str, list[Planned]]:
    found: dict[str, list[Planned]] = {}
    for planned in _searched(plan):
        found.setdefault(planned.method, []).append(planned)
    return found


def _searching(name: str) -> Searching:
    return cast(Searching, methods.get(name))


class _Sizes:
    """Exact bytes of a plan's tables with other settings, and of what reads them.

    Args:
        model: of the original's structure.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], plan: Plan):
        self._layers, self._plan = layers, plan
        self._planned = {p.layer: p for p in plan.layers}
        self._readers = {n: r for n, r in readers(model).items() if n in self._planned}
        self._widths: dict[Hashable, int] = {}

    def of(self, settings: Mapping[str, Any]) -> float:
        """Bytes of these tables, and of all linear layers that decoders are folded into."""
        try:
            tables = sum(self._table(name, of_table) for name, of_table in settings.items())
            return tables + sum(self._linear(name, settings) for name in self._readers)
        except BadSettings:
            return math.inf

    def rewritten(self, settings: Mapping[str, Any], original: Mapping[str, Layer]) -> Plan:
        """The plan with these settings.

        Args:
            original: the layers that losses are predicted on.
        """
        layers = tuple(self._settled(p, settings, original) for p in self._plan.layers)
        grown = sum(p.bytes_after for p in layers) - sum(p.bytes_after for p in self._plan.layers)
        after = self._plan.bytes_after + grown
        return replace(self._plan, layers=layers, bytes_after=after, bytes_resident=None)

    def _settled(
        self, planned: Planned, settings: Mapping[str, Any], original: Mapping[str, Layer]
    ) -> Planned:
        name = planned.layer
        if name in self._readers:
            return replace(planned, bytes_after=self._linear(name, settings), bytes_resident=None)
        if name not in settings:
            return planned
        served = methods.get(planned.method).compress(original[name], settings[name])
        return replace(
            planned,
            settings=asdict(settings[name]),
            bytes_after=self._table(name, settings[name]),
            bytes_resident=None,
            loss=predicted_loss(original[name], served),
        )

    def _table(self, name: str, settings: Any) -> int:
        return empty_bytes(self._planned[name].method, self._layers[name].spec, settings)

    def _linear(self, name: str, settings: Mapping[str, Any]) -> int:
        planned, spec = self._planned[name], self._layers[name].spec
        assert isinstance(spec, LinearSpec)
        narrower = self._narrower(self._readers[name], settings)
        if narrower:
            spec = replace(spec, inputs=spec.inputs - narrower, bias=True)
        return empty_bytes(planned.method, spec, planned.typed_settings)

    def _narrower(self, reader: Reader, settings: Mapping[str, Any]) -> int:
        """Inputs that a reader has no more once decoders are folded into it."""
        return sum(
            block.dim - self._width(block, settings.get(block.table))
            for block in reader.blocks
            if block.table in self._planned
        )

    def _width(self, block: Block, settings: Any) -> int:
        """Inputs that a block is, of a table with these settings; None: with those of the plan."""
        if (block, settings) not in self._widths:
            planned, spec = self._planned[block.table], self._layers[block.table].spec
            own = planned.typed_settings if settings is None else settings
            table = empty_on_meta(planned.method, spec, own)
            folds = can_fold(block, table, set(self._plan.single_valued))
            width = cast(CompressedTable, table).code_width if folds else block.dim
            self._widths[block, settings] = width
        return self._widths[block, settings]
