"""The search for plans in which tables of one width share a decoder.

For a decoder of so many rows, its bytes are taken off in advance, a table that uses it pays for its
codes alone, and the rest is the problem that it was. The decoder is made of all tables of a width
first, and then of those that took it, until they stay the same. Numbers of rows are compared with
linear layers as narrow as in the best plan without; the best of them, if it beats that plan, is
planned in full. A shared decoder saves bytes and no time, so only goals of bytes are planned so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from embedcomp import methods
from embedcomp.planning.choices import (
    Choice,
    Chosen,
    Menu,
    candidates,
    choices,
    together,
)
from embedcomp.planning.search import (
    Goal,
    LeastBytes,
    LeastLoss,
    Search,
)
from embedcomp.planning.sharing import (
    Group,
    groups_of,
    shared_bytes,
    shares,
)
from embedcomp.sensitivity.layer import Layer, TableSpec
from embedcomp.support.progress import Counter

ROUNDS = 4  # of who shares a decoder and what it then is
WORTH_PLANNING = 0.01  # of the loss (or the bytes) that sharing must seem to save


@dataclass(frozen=True)
class _State:
    """A plan, the search that it is of, and what is left to be reached beside its decoders."""

    search: Search
    goal: LeastLoss | LeastBytes
    chosen: Chosen | None

    def beats(self, other: _State, by: float = 0.0) -> bool:
        """Whether it is better, by this share of the other's objective."""
        if self.chosen is None or other.chosen is None:
            return self.chosen is not None
        least = (1 - by) * other.goal.objective(other.chosen)
        return self.goal.objective(self.chosen) < least


def best(search: Search, goal: Goal) -> Chosen | None:
    """The best plan found, with or without shared decoders."""
    if not isinstance(goal, LeastLoss | LeastBytes):
        return search.best(goal)
    found = _State(search, goal, search.best(goal))
    for name in filter(shares, dict.fromkeys([*search.names, *search.rest])):
        for tables in _alike(found, name):
            shared = _shared(found, name, tables)
            if shared is not None and shared.beats(found):
                found = shared
    return None if found.chosen is None else _with_decoders(found.chosen, search)


def _alike(before: _State, method: str) -> list[Group]:
    """Tables of one width that the method takes and that share nothing yet, two or more."""
    layers, by_dim = before.search.layers, dict[int, Group]()
    shared = {name for names in groups_of(before.chosen or {}, layers) for name in names}
    for name, layer in layers.items():
        spec = layer.spec
        able = name not in shared and method in before.search.able(name)
        if able and isinstance(spec, TableSpec):
            by_dim[spec.dim] = (*by_dim.get(spec.dim, ()), name)
    return [tables for tables in by_dim.values() if len(tables) > 1]


def _octaves(search: Search, tables: Group) -> list[int]:
    """Rows of a decoder worth trying: 1, 2, 4, ... and all."""
    dim = search.layers[tables[0]].weight.shape[1]
    return [*(1 << octave for octave in range((dim - 1).bit_length())), dim]


def _shared(before: _State, method: str, tables: Group) -> _State | None:
    """The best plan found where two or more of the tables share a decoder; None: none is better."""
    search = before.search
    start = search.smallest() if before.chosen is None else before.chosen
    best, members, rows = before, Group(), 0
    for most in _octaves(search, tables):
        takers, guess = _settled(before, start, method, tables, most)
        if len(takers) > 1 and guess.beats(before, WORTH_PLANNING) and guess.beats(best):
            best, members, rows = guess, takers, most
    if not members:
        return None
    only = _offer(search, method, members, members, rows)
    return replace(best, search=only, chosen=only.near(start, best.goal))


def _settled(
    before: _State, start: Chosen, method: str, tables: Group, most: int
) -> tuple[Group, _State]:
    """Those who share a decoder of `most` rows that is made of them, and what is then planned."""
    goal = before.goal.beside(_bytes(before.search, method, tables, most))
    members, own = tables, before.search
    menus = {name: own.menu(name) for name in tables}
    for _ in range(ROUNDS):
        offered = _offer(own, method, tables, members, most, menus)
        guess = _State(offered, goal, offered.guess(start, goal))
        chosen = guess.chosen or {}
        takers = tuple(t for t in tables if t in chosen and chosen[t].method == method)
        if takers == members or len(takers) < 2:
            break
        members = takers
    return takers, guess


def _offer(
    search: Search,
    method: str,
    tables: Group,
    members: Group,
    most: int,
    others: Mapping[str, Menu] | None = None,
) -> Search:
    """The search in which tables have the choice of a decoder with `most` rows.

    Args:
        members: what it is made of.
        others: the tables' other choices; None: there are none.
    """
    group = tuple(search.layers[name] for name in members)
    layers = {name: replace(search.layers[name], group=group) for name in tables}
    menus = {name: _menu(search, method, layers[name], most) for name in tables}
    if others is not None:
        menus = {name: together([others[name], menu]) for name, menu in menus.items()}
    return search.offering({**search.layers, **layers}, menus)


def _menu(search: Search, method: str, layer: Layer, most: int) -> Menu:
    """A table's choices of a decoder with `most` rows, without the bytes of the decoder."""
    key = layer.spec.name, f"{method} with {', '.join(t.spec.name for t in layer.group)}", False
    if key not in search.known:
        wanted = len(candidates(method, layer.spec))
        counter = Counter(search.watch, "planning", wanted, "candidates")
        search.known[key] = choices(layer, [method], counter)
    menu = search.known[key]
    decoders = {c.settings.decoder: c.settings for c in menu}
    assert len(decoders) <= 1, "what a method offers a table is of one decoder"
    saved = sum(shared_bytes(layer.spec, method, settings) for settings in decoders.values())
    found = [
        replace(c, settings=replace(c.settings, most=most), bytes=c.bytes - saved)
        for c in menu
        if c.settings.rank <= most
    ]
    return Menu(layer, tuple(found))


def _bytes(search: Search, method: str, tables: Group, most: int) -> int:
    """Bytes of the decoder."""
    spec = search.layers[tables[0]].spec
    settings = methods.get(method).candidates(spec)[0]
    return shared_bytes(spec, method, replace(settings, most=most, rank=1))


def _with_decoders(chosen: Chosen, search: Search) -> Chosen:
    """The choices with the bytes of the decoders, which have no more rows than are used."""
    with_decoders = dict(chosen)
    for names in groups_of(chosen, search.layers):
        if not shares(chosen[names[0]].method):
            continue
        most = max(chosen[name].settings.rank for name in names)
        for name in names:
            with_decoders[name] = _with_rows(chosen[name], most)
        first, spec = with_decoders[names[0]], search.layers[names[0]].spec
        held = shared_bytes(spec, first.method, first.settings)
        with_decoders[names[0]] = replace(first, bytes=first.bytes + held)
    return with_decoders


def _with_rows(choice: Choice, most: int) -> Choice:
    return replace(choice, settings=replace(choice.settings, most=most))
