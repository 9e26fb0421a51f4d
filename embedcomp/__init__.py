"""embedcomp makes click-through-rate models smaller and faster, and proves that quality held."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedcomp.installed import check

if TYPE_CHECKING:
    from embedcomp.inplace import (
        commit_,
        explain,
        freeze_,
        load_,
        plan,
        restore_,
        save,
        swap_,
        thaw_,
    )
    from embedcomp.scorer import Scorer

__version__ = "0.1.0"
__all__ = [
    "Scorer",
    "commit_",
    "explain",
    "freeze_",
    "load_",
    "plan",
    "restore_",
    "save",
    "swap_",
    "thaw_",
]

check()


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: torchrec takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'scorer' if name == 'Scorer' else 'inplace'}"), name)
