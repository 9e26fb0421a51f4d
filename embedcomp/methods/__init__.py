"""Compression methods, one file each; this folder is the registry.

What a method's file holds is written in embedcomp/compress/contract.py.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import cast

from embedcomp.compress.contract import Method
from embedcomp.errors import BadSettings


@cache
def names() -> list[str]:
    """Names of all methods: the files of this folder."""
    return sorted(module.name for module in iter_modules(__path__))


def get(name: str) -> Method:
    """The method's file, imported.

    Raises:
        BadSettings: there is no such method.
    """
    if name not in names():
        raise BadSettings(f"there is no method {name!r}; the methods are: {', '.join(names())}")
    return cast(Method, import_module(f"{__name__}.{name}"))
