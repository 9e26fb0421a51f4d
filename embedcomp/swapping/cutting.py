"""The smaller forms of a compressed model whose layers have ordered ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from embedcomp.modules.embedded import readers
from embedcomp.modules.layout import Compressed, cut, cut_
from embedcomp.modules.ordered import Ordered
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.folding import folded, narrowed
from embedcomp.planning.plan import Plan, Planned
from embedcomp.sensitivity.layer import Layer
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.prefixes import Cut


def drop_dead_(compressed: nn.Module, plan: Plan) -> Plan:
    """Drop the last ranks of trained layers that are worth nothing, in place; the plan says so."""
    layers = tuple(_without_dead(compressed, planned) for planned in plan.layers)
    after = sum(planned.bytes_after for planned in layers)
    before = sum(planned.bytes_after for planned in plan.layers)
    return replace(plan, layers=layers, bytes_after=plan.bytes_after - before + after)


def _without_dead(compressed: nn.Module, planned: Planned) -> Planned:
    layer = compressed.get_submodule(planned.layer)
    if not isinstance(layer, Ordered) or layer.alive() == layer.rank:
        return planned
    alive = layer.alive()
    cut_(compressed, {planned.layer: alive})
    size = module_bytes(compressed.get_submodule(planned.layer))
    return replace(planned, settings={**planned.settings, "rank": alive}, bytes_after=size)


@torch.no_grad()
def cuts(
    model: nn.Module, compressed: nn.Module, plan: Plan, layers: Mapping[str, Layer]
) -> list[Cut]:
    """Steps from a compressed model to ever smaller ones, each the one that costs least a byte.

    What a lower rank loses is predicted as for any plan, over the layer as it is in full.

    Args:
        model: the original.
        layers: its own, with their statistics.
    """
    ordered = _ordered(model, compressed, plan, layers)
    forms = {name: [*_forms(layer, served)] for name, layer, served in ordered}
    return cheapest_first(forms, module_bytes(compressed))


@dataclass(frozen=True)
class Form:
    """A layer with some of its ranks; the loss is over the layer with all of them."""

    rank: int
    bytes: int
    loss: float


def cheapest_first(forms: Mapping[str, list[Form]], size: int) -> list[Cut]:
    """Steps to the smallest forms of all layers, each the one that costs least a byte.

    Args:
        forms: of each layer, ever smaller ones.
        size: bytes of the model whose layers all have their first form.
    """
    left, loss, found = dict(forms), 0.0, []
    while any(len(form) > 1 for form in left.values()):
        name, place = min(_steps(left), key=lambda step: _price(left[step[0]], step[1]))
        before, after = left[name][0], left[name][place]
        size, loss = size - before.bytes + after.bytes, loss + after.loss - before.loss
        found.append(Cut(layer=name, rank=after.rank, bytes=size, loss=loss))
        left[name] = left[name][place:]
    return found


def _ordered(
    model: nn.Module, compressed: nn.Module, plan: Plan, layers: Mapping[str, Layer]
) -> Iterator[tuple[str, Layer, Compressed]]:
    """Layers of ordered ranks: as they are in full, with the original's statistics, and served."""
    around, single = readers(model), set(plan.single_valued)
    tables: dict[str, tuple[Layer, nn.Module]] = {}
    for planned in plan.layers:
        name = planned.layer
        layer, served = layers[name], compressed.get_submodule(name)
        if isinstance(served, CompressedTable):
            tables[name] = layer, served
        if not isinstance(served, Ordered):
            continue
        assert isinstance(served, Compressed)
        if name in around:
            layer = narrowed(layer, around[name], folded(around[name], tables, single))
        if isinstance(served, CompressedTable):
            weight, bias = served.to_float(), None
        else:
            weight, bias = served.to_float()
        yield name, Layer(layer.spec, weight, bias, layer.statistics), served


def _forms(layer: Layer, served: Compressed) -> Iterator[Form]:
    """A layer with all its ranks, and with ever fewer."""
    assert isinstance(served, Ordered)
    yield Form(served.rank, module_bytes(served), 0.0)
    for rank in range(served.rank - 1, 0, -1):
        smaller = cut(served, rank)
        yield Form(rank, module_bytes(smaller), predicted_loss(layer, smaller))


def _steps(forms: Mapping[str, list[Form]]) -> Iterator[tuple[str, int]]:
    """What can be next: a layer, and the place of its form from the present one on."""
    for name, form in forms.items():
        for place in range(1, len(form)):
            yield name, place


def _price(form: list[Form], place: int) -> tuple[float, int]:
    """Predicted loss a byte that is saved; of equal ones the shortest step."""
    before, after = form[0], form[place]
    return (after.loss - before.loss) / max(before.bytes - after.bytes, 1), place
