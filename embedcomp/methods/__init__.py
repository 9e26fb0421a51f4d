"""Compression methods, one file each; this folder is the registry.

What a method's file holds is written in embedcomp/compress/contract.py.
"""

from __future__ import annotations

from typing import cast

from embedcomp import registry
from embedcomp.compress.contract import Method


def names() -> list[str]:
    """Names of all methods: the files of this folder."""
    return registry.names(__path__)


def get(name: str) -> Method:
    """The method's file, imported.

    Raises:
        BadSettings: there is no such method.
    """
    return cast(Method, registry.get(__name__, __path__, "method", name))
