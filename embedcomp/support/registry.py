"""Folders that are registries: one file a thing, and the file's name is the thing's name.

Files that begin with _ and folders are what things share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from embedcomp.errors import BadSettings


def names(path: Iterable[str]) -> list[str]:
    """Names of the files of a folder, a package's `__path__`."""
    return list(_names(tuple(path)))


@cache
def _names(path: tuple[str, ...]) -> list[str]:
    found = (module.name for module in iter_modules(path) if not module.ispkg)
    return sorted(name for name in found if not name.startswith("_"))


def find(folders: Mapping[str, Iterable[str]], kind: str, name: str) -> str:
    """The module of one file of some folders; none is imported, which may take seconds.

    Args:
        folders: a package's `__path__` by its name.
        kind: what the files are, for the error.

    Raises:
        BadSettings: there is no such file.
    """
    for package, path in folders.items():
        if name in names(path):
            return f"{package}.{name}"
    known = sorted(name for path in folders.values() for name in names(path))
    raise BadSettings(f"there is no {kind} {name!r}; the {kind}s are: {', '.join(known)}")


def get(folders: Mapping[str, Iterable[str]], kind: str, name: str) -> ModuleType:
    """The file that `find` finds, imported; no other is."""
    return import_module(find(folders, kind, name))
