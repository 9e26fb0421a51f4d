"""torch, imported when something of it is first used: it takes seconds, and a scorer needs none."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["torch"]

if TYPE_CHECKING:
    import torch
else:

    @cache  # encoding rows asks a hundred thousand times
    def _imported() -> ModuleType:
        return import_module("torch")

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(_imported(), name)

    torch = _Torch()
