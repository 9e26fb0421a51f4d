"""Compression methods, one file each; this folder and `baselines` in it are the registry.

What a method's file holds is written in embedcomp/sensitivity/layer.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, cast

from embedcomp.support import registry

if TYPE_CHECKING:
    from embedcomp.sensitivity.layer import Method

ALL = "all"  # said instead of names
BASELINES = [f"{folder}/baselines" for folder in __path__]
FOLDERS = {__name__: __path__, f"{__name__}.baselines": BASELINES}


def names() -> list[str]:
    """Names of the methods that a plan uses where none are named: the files of this folder."""
    return registry.names(__path__)


def every() -> list[str]:
    """Names of all methods, baselines too."""
    return sorted([*names(), *registry.names(BASELINES)])


def named(said: Collection[str]) -> tuple[str, ...]:
    """Methods by the names that a user gave: none are the default ones, "all" is every one."""
    if ALL in said:
        return tuple(every())
    return tuple(said) or tuple(names())


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise BadSettings where a name is no method's; none is imported for that."""
    for name in names:
        registry.find(FOLDERS, "method", name)


def get(name: str) -> Method:
    """The method's file, imported.

    Raises:
        BadSettings: there is no such method.
    """
    return cast("Method", registry.get(FOLDERS, "method", name))
