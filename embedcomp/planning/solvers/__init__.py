"""Solvers of the planning problem, one file each; this folder is the registry.

Every layer takes exactly one of its choices, and a solver's file holds two functions:

    least_loss(options, most_bytes)    the smallest predicted loss within a number of bytes
    least_bytes(options, most_loss)    the fewest bytes within a predicted loss (the dual)

`options` are the layers' menus by name. A menu is a sequence of choices that also knows its layer:
solvers that weigh choices by their predicted loss read the choices alone; those that go by the
spectrum of the weights read the layer. Both give None where nothing is within the limit. A file
with WHOLE_FAMILIES = True finds a method's choices of every rank in each menu, also in those of
layers for which few of them are likely.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from embedcomp.support import registry

if TYPE_CHECKING:
    from embedcomp.planning.choices import Chosen, Menu


class Solver(Protocol):
    """A file in this folder."""

    def least_loss(self, options: Mapping[str, Menu], most_bytes: float) -> Chosen | None: ...

    def least_bytes(self, options: Mapping[str, Menu], most_loss: float) -> Chosen | None: ...


@cache
def names() -> list[str]:
    """Names of all solvers: the files of this folder."""
    return registry.names(__path__)


def refuse_unknown(name: str) -> None:
    """Raise BadSettings where a name is no solver's; none is imported for that."""
    registry.find({__name__: __path__}, "solver", name)


def get(name: str) -> Solver:
    """The solver's file, imported.

    Raises:
        BadSettings: there is no such solver.
    """
    return cast(Solver, registry.get({__name__: __path__}, "solver", name))
