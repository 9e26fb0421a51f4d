"""Compression methods, one file each; this folder and those in it are the registry.

`baselines` has methods that plans do without by default, `trained` those whose form is good only
once it is trained.

What a method's file holds is written in embedcomp/sensitivity/layer.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, cast

from embedcomp.errors import BadSettings
from embedcomp.support import registry

if TYPE_CHECKING:
    from embedcomp.sensitivity.layer import Method

ALL = "all"  # said instead of names
BASELINES = [f"{folder}/baselines" for folder in __path__]
TRAINED = [f"{folder}/trained" for folder in __path__]
FOLDERS = {
    __name__: __path__,
    f"{__name__}.baselines": BASELINES,
    f"{__name__}.trained": TRAINED,
}


def names() -> list[str]:
    """Names of the methods that a plan uses where none are named: the files of this folder."""
    return registry.names(__path__)


def that_train() -> list[str]:
    """Names of the methods whose form is trained."""
    return registry.names(TRAINED)


def every() -> list[str]:
    """Names of all methods that need no training, baselines too."""
    return sorted([*names(), *registry.names(BASELINES)])


def named(said: Collection[str], training: bool = False) -> tuple[str, ...]:
    """Methods by the names that a user gave: none are the default ones, "all" is every one.

    Args:
        training: whether the compressed model will be trained.

    Raises:
        BadSettings: it will not be, but a method's form is to be trained.
    """
    untrained = [name for name in said if name in that_train() and not training]
    if untrained:
        raise BadSettings(
            f"what {untrained[0]} makes is good only once it is trained; give --train-epochs too"
        )
    more = that_train() if training else []
    if ALL in said:
        return (*every(), *more)
    return tuple(said) or (*names(), *more)


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
