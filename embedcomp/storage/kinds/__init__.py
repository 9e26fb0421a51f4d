"""The kinds of stored rows: the files of this folder (storage/kind.py says what is in one)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from embedcomp.errors import BadSettings
from embedcomp.storage.kind import Kind
from embedcomp.support import registry


def named(name: str, **parameters: Any) -> Kind:
    """The kind of this name.

    Raises:
        BadSettings: there is none, or none of such a size.
    """
    return _named(name, tuple((n, _frozen(value)) for n, value in parameters.items()))


@cache
def _named(name: str, parameters: tuple[tuple[str, Any], ...]) -> Kind:
    for file in registry.names(__path__):
        found: Kind | None = import_module(f"{__name__}.{file}").named(name, **dict(parameters))
        if found is not None:
            return found
    raise BadSettings(
        f"there is no storage {name!r}; kinds are in {', '.join(registry.names(__path__))}"
    )


def of(described: str | Mapping[str, Any]) -> Kind:
    """The kind that an artifact describes. Raises BadSettings."""
    return named(described) if isinstance(described, str) else named(**described)


def examples(rows: int, width: int) -> list[Kind]:
    """Kinds of all files, whose costs are measured."""
    files = [import_module(f"{__name__}.{file}") for file in registry.names(__path__)]
    return [kind for file in files for kind in file.examples(rows, width)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
