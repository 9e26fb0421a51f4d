"""Tables that share a decoder or a pool, as a plan has them: who they are, and whose its bytes are.

Of the tables of a group the first is said to hold what is shared, and has its bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from embedcomp import methods
from embedcomp.methods.parts import pooling
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import Choice, Chosen, empty_on_meta
from embedcomp.planning.plan import Plan
from embedcomp.sensitivity.layer import Layer, SharesDecoder, SharesPool, Spec

Group = tuple[str, ...]  # names of tables, in the model's order


def shares_decoders(method: str) -> bool:
    """Whether tables share decoders by this method."""
    return issubclass(methods.get(method).Settings, SharesDecoder)


def shares_pools(method: str) -> bool:
    """Whether tables share stored rows by this method."""
    return issubclass(methods.get(method).Settings, SharesPool)


def groups(plan: Plan) -> list[Group]:
    """The tables of a plan that share a decoder or a pool."""
    return _groups((p.layer, p.shape[1], p.method, p.typed_settings) for p in plan.tables)


def decoder_groups(plan: Plan) -> list[Group]:
    """The tables of a plan that share decoders, each of which is made for all its tables."""
    by_name = {planned.layer: planned for planned in plan.tables}
    return [names for names in groups(plan) if shares_decoders(by_name[names[0]].method)]


def groups_of(chosen: Mapping[str, Choice], layers: Mapping[str, Layer]) -> list[Group]:
    """Groups of the layers that share something, given their choices."""
    return _groups(
        (name, layers[name].weight.shape[1], choice.method, choice.settings)
        for name, choice in chosen.items()
    )


def _groups(tables: Iterable[tuple[str, int, str, Any]]) -> list[Group]:
    found: dict[Any, Group] = {}
    for name, dim, method, settings in tables:
        key = pool_of(method, settings)
        if isinstance(settings, SharesDecoder):
            key = method, dim, settings.decoder
        if key is not None:
            found[key] = (*found.get(key, ()), name)
    return list(found.values())


def pool_of(method: str, settings: Any) -> Hashable | None:
    """What tables that read one pool have in common; None: it reads its own rows."""
    return (method, settings.pool) if isinstance(settings, SharesPool) else None


def in_groups(layers: Mapping[str, Layer], found: Collection[Group]) -> dict[str, Layer]:
    """The layers, each of a group with those that it shares something with."""
    members = {names: tuple(layers[name] for name in names) for names in found}
    together = {n: replace(layers[n], group=members[names]) for names in found for n in names}
    return {**layers, **together}


def share_parts(model: nn.Module, plan: Plan, layers: Mapping[str, Layer] | None) -> None:
    """Make one of the decoders or the pools of each group, in place, once the tables are swapped.

    Args:
        layers: that the tables were made of; None: they have no numbers.
    """
    settings = {planned.layer: planned.typed_settings for planned in plan.tables}
    for names in groups(plan):
        tables = [_table(model, name) for name in names]
        if isinstance(settings[names[0]], SharesDecoder):
            for table in tables[1:]:
                table.decode_with(tables[0])
        elif layers is not None:
            pooling.join(tables, [layers[name] for name in names])
        else:
            for table in tables[1:]:
                table.store_with(tables[0])


def _table(model: nn.Module, name: str) -> CompressedTable:
    found = model.get_submodule(name)
    assert isinstance(found, CompressedTable)
    return found


def counted_once(chosen: Chosen, layers: Mapping[str, Layer]) -> Chosen:
    """Choices of tables by themselves, with the bytes that they take where they share."""
    counted = dict(chosen)
    for _, *others in groups_of(chosen, layers):
        for name in others:
            choice = chosen[name]
            saved = shared_bytes(layers[name].spec, choice.method, choice.settings)
            counted[name] = replace(choice, bytes=choice.bytes - saved)
    return counted


def shared_bytes(spec: Spec, method: str, settings: SharesDecoder | SharesPool) -> int:
    """Bytes of the part of a table that is shared."""
    empty: Any = empty_on_meta(method, spec, settings)
    shared = empty.decode.stored if isinstance(settings, SharesDecoder) else empty.stored
    return module_bytes(shared)
