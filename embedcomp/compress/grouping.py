"""The search for plans in which tables of one width share a decoder.

For a decoder of so many rows, its bytes are taken off in advance, a table that uses it pays for its
codes alone, and the rest is the problem that it was. It begins with all tables of a width; those
that took the decoder are what it is made of next, until they stay the same. All numbers of rows
are tried near the best plan without, and only one that is better is taken.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from embedcomp import methods
from embedcomp.compress.choices import Choice, Chosen, Menu, choices, together
from embedcomp.compress.contract import Layer, TableSpec
from embedcomp.compress.search import Goal, Search
from embedcomp.compress.sharing import Group, decoder_bytes, groups_of, in_groups

ROUNDS = 4  # of who shares a decoder and what it then is


@dataclass(frozen=True)
class _State:
    """A plan, the search that it is of, and what is left to be reached beside its decoders."""

    search: Search
    goal: Goal
    chosen: Chosen | None

    def beats(self, other: _State) -> bool:
        if self.chosen is None or other.chosen is None:
            return self.chosen is not None
        return self.goal.objective(self.chosen) < other.goal.objective(other.chosen)


def best(search: Search, goal: Goal, names: Collection[str]) -> Chosen | None:
    """The best plan found, with or without shared decoders.

    Args:
        names: methods by which tables share decoders; the search knows the others.
    """
    found = _State(search, goal, search.best(goal))
    for name in names:
        for tables in _alike(found, name):
            tried = [_shared(found, name, tables, most) for most in _octaves(search, tables)]
            for state in tried:
                if state is not None and state.beats(found):
                    found = state
    return None if found.chosen is None else _with_decoders(found.chosen, search)


def _alike(before: _State, method: str) -> list[Group]:
    """Tables of one width that the method takes and that share nothing yet, two or more."""
    layers, takes, by_dim = before.search.layers, methods.get(method).candidates, dict[int, Group]()
    shared = {name for names in groups_of(before.chosen or {}, layers) for name in names}
    for name, layer in layers.items():
        spec = layer.spec
        if isinstance(spec, TableSpec) and name not in shared and takes(spec):
            by_dim[spec.dim] = (*by_dim.get(spec.dim, ()), name)
    return [tables for tables in by_dim.values() if len(tables) > 1]


def _octaves(search: Search, tables: Group) -> list[int]:
    """Rows of a decoder worth trying: 1, 2, 4, ... and all."""
    dim = search.layers[tables[0]].weight.shape[1]
    return [*(1 << octave for octave in range((dim - 1).bit_length())), dim]


def _shared(before: _State, method: str, tables: Group, most: int) -> _State | None:
    """The best plan found where two or more of the tables share a decoder of up to `most` rows."""
    search = before.search
    start = search.smallest() if before.chosen is None else before.chosen
    for _ in range(ROUNDS):
        offered = _offer(search, method, tables, most)
        goal = before.goal.beside(_bytes(search, method, tables, most))
        guess = offered.guess(start, goal)
        takers = () if guess is None else tuple(t for t in tables if guess[t].method == method)
        if len(takers) < 2:
            return None
        if takers == tables:
            break
        tables = takers
    only = _offer(search, method, tables, most, only=True)
    return _State(only, goal, only.near(start, goal))


def _offer(search: Search, method: str, tables: Group, most: int, only: bool = False) -> Search:
    """The search in which these tables can share a decoder with `most` rows, or have to."""
    layers = in_groups(search.layers, [tables])
    menus = {name: _menu(search, method, layers[name], most) for name in tables}
    if not only:
        menus = {name: together([search.menu(name), menu]) for name, menu in menus.items()}
    return search.offering(layers, menus)


def _menu(search: Search, method: str, layer: Layer, most: int) -> Menu:
    """A table's choices of a decoder with `most` rows, without the bytes of the decoder."""
    key = layer.spec.name, f"{method} with {', '.join(t.spec.name for t in layer.group)}"
    if key not in search.known:
        search.known[key] = choices(layer, [method])
    whole = search.known[key]
    shared = {c.settings.decoder: c for c in whole}
    assert len(shared) == 1, "what a method offers a table is of one decoder"
    (one,) = shared.values()
    saved = decoder_bytes(layer.spec, method, one.settings)
    found = [
        replace(c, settings=replace(c.settings, most=most), bytes=c.bytes - saved)
        for c in whole
        if c.settings.rank <= most
    ]
    return Menu(layer, tuple(found))


def _bytes(search: Search, method: str, tables: Group, most: int) -> int:
    """Bytes of the decoder."""
    spec = search.layers[tables[0]].spec
    settings = methods.get(method).candidates(spec)[0]
    return decoder_bytes(spec, method, replace(settings, most=most, rank=1))


def _with_decoders(chosen: Chosen, search: Search) -> Chosen:
    """The choices with the bytes of the decoders, which have no more rows than are used."""
    made = dict(chosen)
    for names in groups_of(chosen, search.layers):
        most = max(chosen[name].settings.rank for name in names)
        for name in names:
            made[name] = _with_rows(chosen[name], most)
        first, spec = made[names[0]], search.layers[names[0]].spec
        held = decoder_bytes(spec, first.method, first.settings)
        made[names[0]] = replace(first, bytes=first.bytes + held)
    return made


def _with_rows(choice: Choice, most: int) -> Choice:
    return replace(choice, settings=replace(choice.settings, most=most))
