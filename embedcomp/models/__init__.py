"""CTR models, one file each; this folder is the registry.

A model file holds `Settings` (frozen, keyword-only) and `build(features, settings) -> nn.Module`,
whose forward takes dense float32 [B, D] and a KeyedJaggedTensor of ids and gives logits [B].
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from embedcomp.support import registry


def names() -> list[str]:
    """Names of all models: the files of this folder."""
    return registry.names(__path__)


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise BadSettings where a name is neither a model's nor package.module:function.

    No model is imported for that.
    """
    for name in names:
        if ":" not in name:
            registry.find({__name__: __path__}, "model", name)


def get(name: str) -> ModuleType:
    """The model's file, imported.

    Raises:
        BadSettings: there is no such model.
    """
    return registry.get({__name__: __path__}, "model", name)
