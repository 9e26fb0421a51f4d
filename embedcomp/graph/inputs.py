"""A model's inputs taken apart into leaves and put together again; knows no torch by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What tuples, lists, mappings and dataclasses hold at their ends, with where it stands."""
    kind = _kind(value.__class__)
    if kind is None:
        yield name, value
        return
    for key, child in _children(value, kind):
        if _kind(child.__class__) is None:
            yield name + key, child
        else:
            yield from leaves(child, name + key)


def with_leaves(value: Any, new_leaf: Callable[[str, Any], Any], name: str = "") -> Any:
    """A copy of a structure of inputs in which every leaf is replaced."""
    kind = _kind(value.__class__)
    if kind is None:
        return new_leaf(name, value)
    new = [(key, with_leaves(child, new_leaf, name + key)) for key, child in _children(value, kind)]
    if kind == "mapping":
        return dict(zip(value, (child for _, child in new), strict=True))
    if kind == "dataclass":
        return replace(value, **{key[1:]: child for key, child in new})
    children = [child for _, child in new]
    return type(value)(*children) if hasattr(value, "_fields") else type(value)(children)


Kind = Literal["mapping", "sequence", "dataclass"]


@cache
def _kind(of: type) -> Kind | None:
    """What values of a type are taken apart as; None: they are leaves."""
    if issubclass(of, Mapping):
        return "mapping"
    if issubclass(of, tuple | list):
        return "sequence"
    return "dataclass" if is_dataclass(of) else None


def _children(value: Any, kind: Kind) -> Iterator[tuple[str, Any]]:
    if kind == "mapping":
        return ((f"[{key!r}]", child) for key, child in value.items())
    if kind == "sequence":
        return ((f"[{i}]", child) for i, child in enumerate(value))
    return ((f".{field.name}", getattr(value, field.name)) for field in fields(value))
