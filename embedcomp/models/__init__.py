"""CTR models, one file each; this folder is the registry.

A model file holds `Settings` (frozen, keyword-only) and `build(features, settings) -> nn.Module`,
whose forward takes dense float32 [B, D] and a KeyedJaggedTensor of ids and gives logits [B].
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from embedcomp.errors import BadSettings


def names() -> list[str]:
    """Names of all models: the files of this folder."""
    return sorted(module.name for module in iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The model's file, imported.

    Raises:
        BadSettings: there is no such model.
    """
    if name not in names():
        raise BadSettings(f"there is no model {name!r}; the models are: {', '.join(names())}")
    return import_module(f"{__name__}.{name}")
