"""A model's inputs taken apart into leaves and put together again; knows no torch by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What tuples, lists, mappings and dataclasses hold at their ends, with where it stands."""
    for key, child in _children(value):
        yield from leaves(child, name + key)
    if not _is_nest(value):
        yield name, value


def with_leaves(value: Any, new_leaf: Callable[[str, Any], Any], name: str = "") -> Any:
    """A copy of a structure of inputs in which every leaf is replaced."""
    if not _is_nest(value):
        return new_leaf(name, value)
    new = [(key, with_leaves(child, new_leaf, name + key)) for key, child in _children(value)]
    if isinstance(value, Mapping):
        return dict(zip(value, (child for _, child in new), strict=True))
    if is_dataclass(value):
        return replace(value, **{key[1:]: child for key, child in new})  # type: ignore[type-var]
    children = [child for _, child in new]
    return type(value)(*children) if hasattr(value, "_fields") else type(value)(children)


def _is_nest(value: Any) -> bool:
    return isinstance(value, tuple | list | Mapping) or (
        is_dataclass(value) and not isinstance(value, type)
    )


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", child) for key, child in value.items())
    elif isinstance(value, tuple | list):
        yield from ((f"[{i}]", child) for i, child in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in fields(value))
