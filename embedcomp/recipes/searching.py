"""The stage of training in which methods search for better settings of a plan's layers.

The model is trained with its own layers, but for those of such methods, each of which stands as
its method has it searched. Decoders are not folded and nothing else is rounded then: what is
searched for must not depend on that. Then every method settles all of its layers at once, within
the bytes that the plan gave them and the linear layers that their decoders are folded into.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from embedcomp import methods
from embedcomp.errors import BadSettings
from embedcomp.kernels.threads import one_thread
from embedcomp.modules.embedded import Block, Reader, can_fold, readers
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import empty_bytes, empty_on_meta
from embedcomp.planning.plan import Plan, Planned
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
from embedcomp.swapping.heldout import HeldOut
from embedcomp.swapping.swap import thaw
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings

SHARE = 3  # one in so many epochs is the search's
FITNESS_ROWS = 16_384  # held-out rows that settings are compared on


@dataclass(frozen=True)
class Start:
    """What the final form begins with.

    model: of the original's structure.
    found: its layers, as the plan is carried out on them.
    history: of the search.
    """

    model: nn.Module
    found: Found
    plan: Plan
    history: list[dict[str, Any]]


def searches(plan: Plan) -> bool:
    """Whether some of the plan's layers are searched for."""
    return bool(_by_method(plan))


def stages(settings: TrainSettings) -> tuple[TrainSettings, TrainSettings]:
    """Settings of the search and of the final stage, each of an epoch at least."""
    first = max(1, round(settings.epochs / SHARE))
    return replace(settings, epochs=first), replace(
        settings, epochs=max(1, settings.epochs - first)
    )


def search(
    model: nn.Module,
    found: Found,
    measured: Statistics,
    original: Mapping[str, Layer],
    plan: Plan,
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
        model: that training begins with; not changed.
        found, measured: the model's layers, and statistics of them.
        original: the layers that losses are predicted on, with their statistics.
        settings: of this stage.

    Raises:
        BadLog: held-out rows are too few to tell settings apart.
    """
    held.refuse_one_kind()
    supernet, layers = copy.deepcopy(model), measured.measured(found).layers
    tables = _put_in(supernet, plan, layers)
    thaw(supernet)
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
    supernet.eval()
    few = held.first(FITNESS_ROWS)
    before = plan
    with one_thread(), torch.no_grad():
        for name, group in _by_method(plan).items():
            sizes = _Sizes(model, layers, plan)
            room = Room(
                bytes_of=sizes.of,
                most=sizes.of({p.layer: p.typed_settings for p in group}),
                score=lambda: few.quality_of(supernet).auc,
                seed=settings.seed,
                watch=watch,
            )
            settled = _searching(name).settle({p.layer: tables[p.layer] for p in group}, room)
            plan = sizes.rewritten(settled, original)
    assert plan.bytes_after <= before.bytes_after, (plan.bytes_after, before.bytes_after)
    history = [{"stage": "search", **entry} for entry in history]
    initial = all(p.typed_settings.start == "initial" for p in _searched(plan))
    for name in tables:  # a table has its place in the model again, and no numbers that are read
        supernet.set_submodule(name, model.get_submodule(name))
    left = found if initial else _as_trained(found, supernet)
    begun = {**left.layers, **{n: _begun(found.layers[n], table) for n, table in tables.items()}}
    return Start(model if initial else supernet, replace(found, layers=begun), plan, history)


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
    master = table.module.stored.master
    assert master is not None
    return replace(layer, weight=master.detach(), drawn=False)


def _put_in(model: nn.Module, plan: Plan, layers: Mapping[str, Layer]) -> dict[str, SearchedTable]:
    """Put what is searched in the place of the plan's layers."""
    found = {}
    for planned in _searched(plan):
        layer, settings = layers[planned.layer], planned.typed_settings
        module = _searching(planned.method).searching(layer, settings)
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
