"""Putting compressed layers where a model's own were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from embedcomp import methods
from embedcomp.modules.embedded import fold, readers
from embedcomp.modules.sizes import module_bytes
from embedcomp.planning.choices import empty_on_meta
from embedcomp.planning.folding import folded, narrowed
from embedcomp.planning.plan import Plan, Planned
from embedcomp.planning.sharing import decoder_groups, in_groups, share_parts
from embedcomp.sensitivity.layer import Layer, Served
from embedcomp.sensitivity.layers import Found, find
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.storage.rows import StoredRows
from embedcomp.support.progress import Counter, Watch, quiet
from embedcomp.swapping.lastbias import add_to_bias

Make = Callable[[Planned, nn.Module], nn.Module]


def apply(
    model: nn.Module, plan: Plan, found: Found, measured: Statistics, watch: Watch = quiet
) -> nn.Module:
    """A copy of the model with the plan carried out; what stays as it is is copied too.

    Args:
        found, measured: the layers and statistics that the plan was made of.

    Raises:
        CannotStore: a layer's values do not fit the planned storage.
    """
    layers = measured.measured(found).layers
    own = (p for one in plan.layers for p in model.get_submodule(one.layer).parameters())
    replaced = {id(p): p for p in own}
    copied = copy.deepcopy(model, dict(replaced))
    apply_(copied, plan, layers, watch)
    assert module_bytes(copied) == plan.bytes_after, (module_bytes(copied), plan.bytes_after)
    return copied


def apply_(model: nn.Module, plan: Plan, layers: Mapping[str, Layer], watch: Watch = quiet) -> None:
    """Carry a plan out in place: compressed modules stand where the model's layers stood.

    Args:
        layers: with their statistics.

    Raises:
        BadModel: the plan moves a bias that the model does not have.
        CannotStore: as for `apply`; the model may be half swapped.
    """
    compressing = Compressing(model, plan, layers)
    counter = Counter(watch, "encoding", len(plan.layers), "layers")

    def make(planned: Planned, inside: nn.Module) -> nn.Module:
        counter.at(f"{planned.layer}: {planned.method}")
        served = compressing.served(planned)[1]
        counter.add()
        return served

    _swap(model, plan, make, layers)
    for planned in plan.layers:
        if begins_far(layers[planned.layer], planned.typed_settings):
            begin_far(model.get_submodule(planned.layer))
    if plan.outcome is not None and plan.outcome.bias:
        add_to_bias(model, plan.outcome.bias, plan.outcome.shift)


class Compressing:
    """Makes the served layers of a plan, tables before the linear layers that read them.

    Args:
        model: as it was before any layer was swapped.
        layers: with their statistics.
    """

    def __init__(self, model: nn.Module, plan: Plan, layers: Mapping[str, Layer]):
        self._around, self._layers = readers(model), in_groups(layers, decoder_groups(plan))
        self._single = set(plan.single_valued)
        self._tables: dict[str, tuple[Layer, nn.Module]] = {}

    def served(self, planned: Planned) -> tuple[Layer, Served]:
        """The layer as it is served, and as it was (with decoders folded into it).

        Raises:
            CannotStore: its values do not fit the planned storage.
        """
        layer = self._layers[planned.layer]
        if planned.layer in self._around:
            reader = self._around[planned.layer]
            layer = narrowed(layer, reader, folded(reader, self._tables, self._single))
        served = methods.get(planned.method).compress(layer, planned.typed_settings)
        if planned.kind == "table":
            self._tables[planned.layer] = layer, served
        return layer, served


def empty_like(model: nn.Module, plan: Plan) -> nn.Module:
    """The model that `apply` gives, without memory for the planned layers' tensors.

    Args:
        model: of the original's structure, usually on the meta device; not changed.
    """

    def make(planned: Planned, inside: nn.Module) -> nn.Module:
        spec = find(inside, {}).layers[planned.layer].spec
        return empty_on_meta(planned.method, spec, planned.typed_settings)

    copied = copy.deepcopy(model)
    _swap(copied, plan, make)
    return copied


def _swap(
    model: nn.Module, plan: Plan, make: Make, layers: Mapping[str, Layer] | None = None
) -> None:
    """Tables first, then their decoders into the layers that read them, then linear layers."""
    for planned in plan.tables:
        model.set_submodule(planned.layer, make(planned, model).train(model.training))
    share_parts(model, plan, layers)
    fold(model, set(plan.single_valued), {planned.layer for planned in plan.linears})
    for planned in plan.linears:
        model.set_submodule(planned.layer, make(planned, model).train(model.training))


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model without memory for its parameters."""
    empty = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, dict(empty))


def begins_far(layer: Layer, settings: Any) -> bool:
    """Whether a layer with such settings begins far from where training will bring it."""
    return layer.drawn or getattr(settings, "begins_far", False)


def begin_far(served: nn.Module) -> None:
    """Note that what a layer begins with is far from where training will bring it."""
    for module in served.modules():
        if isinstance(module, StoredRows):
            module.begins_far = True


def thaw(model: nn.Module, floats: float = 0.0) -> None:
    """Make every stored tensor of a compressed model trainable, grids too, in place.

    Args:
        floats: the share of a run of the trainer, at first, in which what begins far from where it
            will end is not rounded.
    """
    for module in model.modules():
        if isinstance(module, StoredRows):
            module.thaw()
            if floats and module.begins_far:
                module.read_floats(floats)


def freeze(model: nn.Module) -> None:
    """Store what was trained, in place; the model's scores do not change by a bit.

    Raises:
        CannotStore: training went beyond what a storage holds.
    """
    for module in model.modules():
        if isinstance(module, StoredRows):
            module.freeze()
