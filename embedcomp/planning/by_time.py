"""Choices with their time in the place of their bytes or their loss.

What solves the planning problem for bytes and losses solves it for any cost and any value, so that
every solver can keep to a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from embedcomp.planning.choices import Choice, Chosen, Menu

Solve = Callable[[Mapping[str, Menu], float], Chosen | None]  # of the options, and a limit


@dataclass(frozen=True)
class Instead(Choice):
    """A choice with another number in the place of one of its own."""

    of: Choice = field(kw_only=True)


def bytes_are_times(
    solve: Solve, options: Mapping[str, Menu], most_nanoseconds: int
) -> Chosen | None:
    """What a solver of the bytes gives for nanoseconds.

    They are counted from each layer's fastest choice on, since what a choice saves others can be
    more than it takes.
    """
    least = {name: _least(menu) for name, menu in options.items()}
    limit = most_nanoseconds - sum(least.values())
    found = solve(_with(options, "bytes", least), limit)
    return None if found is None else _own(found)


def losses_are_times(solve: Solve, options: Mapping[str, Menu], most_bytes: float) -> Chosen | None:
    """The shortest time within a number of bytes, by what solves it for losses."""
    least = {name: _least(menu) for name, menu in options.items()}
    found = solve(_with(options, "loss", least), most_bytes)
    return None if found is None else _own(found)


def _least(menu: Sequence[Choice]) -> int:
    return min(choice.nanoseconds for choice in menu)


def _with(options: Mapping[str, Menu], place: str, least: Mapping[str, int]) -> dict[str, Menu]:
    """Menus in which a field is a choice's nanoseconds beyond its layer's least."""
    changed = {}
    for name, menu in options.items():
        found = [_instead(choice, place, choice.nanoseconds - least[name]) for choice in menu]
        changed[name] = Menu(menu.layer, tuple(sorted(found, key=lambda c: (c.bytes, c.loss))))
    return changed


def _instead(choice: Choice, place: str, value: int) -> Instead:
    values = {f.name: getattr(choice, f.name) for f in fields(Choice)}
    return Instead(**{**values, place: value}, of=choice)


def _own(found: Chosen) -> Chosen:
    return {n: choice.of for n, choice in found.items() if isinstance(choice, Instead)}
