"""How far long work is: said by what works, shown by whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class State(Protocol):
    """How far one step of the work is."""

    @property
    def step(self) -> str:
        """Name of the step, such as "planning"."""

    @property
    def done(self) -> int: ...

    @property
    def total(self) -> int | None:
        """What `done` will be at the end; None: not known."""

    @property
    def unit(self) -> str:
        """What is counted, such as "candidates"."""

    @property
    def note(self) -> str:
        """What is worked on now, such as a layer."""

    @property
    def result(self) -> str:
        """What was found out just now, worth a line that stays; empty: nothing."""


@dataclass(frozen=True)
class Doing:
    """The state of a step; without `unit`, of one whose end cannot be foreseen."""

    step: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""
    result: str = ""


Watch = Callable[[State], None]


def quiet(state: State) -> None:
    """A watch that shows nothing."""


class Counter:
    """Counts what is done of a step and says so."""

    def __init__(self, watch: Watch, step: str, total: int, unit: str):
        self._watch, self._step, self._total, self._unit = watch, step, total, unit
        self._done = 0
        self.at()

    def at(self, note: str = "") -> None:
        """Say what is worked on."""
        self._watch(Doing(self._step, self._done, self._total, self._unit, note))

    def add(self, count: int = 1, note: str = "") -> None:
        """Take in that so many more are done."""
        self.reach(self._done + count, note)

    def reach(self, done: int, note: str = "") -> None:
        """Take in how many are done."""
        self._done = done
        self.at(note)

    def over(self, items: Iterable[T], size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
        """The items; each counts as done when the next one is asked for."""
        for item in items:
            yield item
            self.add(size(item))
