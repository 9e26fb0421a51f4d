"""embedcomp makes click-through-rate models smaller and faster, and proves that quality held."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedcomp.kernels.installed import check
from embedcomp.support.version import __version__ as __version__

if TYPE_CHECKING:
    from embedcomp.recipes.in_place import (
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
    from embedcomp.scorer.scorer import Scorer

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
    room = "scorer.scorer" if name == "Scorer" else "recipes.in_place"
    return getattr(import_module(f"{__name__}.{room}"), name)
