"""Tables that share a decoder or stored rows, as a plan has them: who they are, and whose bytes.

Of the tables of a group the first is said to hold what they share, and has its bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from embedcomp import methods
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import Choice, Chosen, empty_on_meta
from embedcomp.planning.plan import Plan
from embedcomp.sensitivity.layer import Layer, SharesDecoder, SharesRows, Spec

Group = tuple[str, ...]  # names of tables, in the model's order


def shares(method: str) -> bool:
    """Whether tables share decoders by this method."""
    return issubclass(methods.get(method).Settings, SharesDecoder)


def groups(plan: Plan) -> list[Group]:
    """The tables of a plan that share decoders or rows."""
    return _groups((p.layer, p.shape[1], p.method, p.typed_settings) for p in plan.tables)


def groups_of(chosen: Mapping[str, Choice], layers: Mapping[str, Layer]) -> list[Group]:
    """Groups of the layers that share a decoder or rows, given their choices."""
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
    """What tables that read the same stored rows have in common; None: it reads its own."""
    return (method, settings.pool) if isinstance(settings, SharesRows) else None


def in_groups(layers: Mapping[str, Layer], found: Collection[Group]) -> dict[str, Layer]:
    """The layers, each of a group with those that it shares a decoder or rows with."""
    members = {names: tuple(layers[name] for name in names) for names in found}
    together = {n: replace(layers[n], group=members[names]) for names in found for n in names}
    return {**layers, **together}


def share(model: nn.Module, plan: Plan) -> None:
    """Make one of the equal parts of each group, in place, once the tables are swapped."""
    settings = {planned.layer: planned.typed_settings for planned in plan.tables}
    for first, *others in groups(plan):
        holder = model.get_submodule(first)
        for name in others:
            table = model.get_submodule(name)
            assert isinstance(table, CompressedTable) and isinstance(holder, CompressedTable)
            if isinstance(settings[name], SharesRows):
                table.store_with(holder)
            else:
                table.decode_with(holder)


def counted_once(chosen: Chosen, layers: Mapping[str, Layer]) -> Chosen:
    """Choices whose tables have everything for themselves, with the bytes of what they share."""
    counted = dict(chosen)
    for _, *others in groups_of(chosen, layers):
        for name in others:
            choice = chosen[name]
            saved = shared_bytes(layers[name].spec, choice.method, choice.settings)
            counted[name] = replace(choice, bytes=choice.bytes - saved)
    return counted


def shared_bytes(spec: Spec, method: str, settings: SharesDecoder | SharesRows) -> int:
    """Bytes of the part of a table that is shared."""
    empty: Any = empty_on_meta(method, spec, settings)
    return module_bytes(empty.stored if isinstance(settings, SharesRows) else empty.decode.stored)
