"""CTR models, one file each; this folder is the registry.

A model file holds `Settings` (frozen, keyword-only) and `build(features, settings) -> nn.Module`,
whose forward takes dense float32 [B, D] and a KeyedJaggedTensor of ids and gives logits [B].
"""

from __future__ import annotations

from types import ModuleType

from embedcomp.support import registry


def names() -> list[str]:
    """Names of all models: the files of this folder."""
    return registry.names(__path__)


def get(name: str) -> ModuleType:
    """The model's file, imported.

    Raises:
        BadSettings: there is no such model.
    """
    return registry.get({__name__: __path__}, "model", name)
