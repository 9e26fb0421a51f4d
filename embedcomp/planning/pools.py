"""The search for plans in which tables read one pool of stored rows.

For a pool of so many rows, its bytes are taken off in advance, a table that reads it pays for its
decoder alone, and the rest is the problem that it was. What a table loses depends on who else reads
the pool: first all that can are taken to, then those that chose it, until they stay the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from embedcomp.planning.choices import (
    Chosen,
    Menu,
    candidates,
    found_by_method,
    menu,
    together,
    total_bytes,
)
from embedcomp.planning.search import LeastBytes, LeastLoss, Search
from embedcomp.planning.sharing import Group, groups_of, shared_bytes
from embedcomp.sensitivity.layer import Layer, SharesPool
from embedcomp.support.progress import Counter

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)  # of what other layers leave, that a pool may take
ROUNDS = 3  # of who reads a pool and what it then is


class Pooled(NamedTuple):
    """A plan, the search that it is of, and what is left to be reached beside its pool."""

    search: Search
    goal: LeastLoss | LeastBytes
    chosen: Chosen


class _Pool(NamedTuple):
    """A pool, and what each table that can read it may be given."""

    method: str
    bytes: int
    wanted: Mapping[str, Sequence[Any]]


def best(
    search: Search, goal: LeastLoss | LeastBytes, before: Chosen | None, method: str
) -> Pooled | None:
    """The best plan found in which two tables or more read one pool; None: there is none.

    Args:
        before: the best plan without one.
    """
    start = search.smallest() if before is None else before
    most = goal.most_bytes if isinstance(goal, LeastLoss) else total_bytes(start)
    taken = {name for names in groups_of(start, search.layers) for name in names}
    found: Pooled | None = None
    for pool in _pools(search, method, most, taken):
        guess = _settled(search, goal, start, pool)
        if guess is not None and (
            found is None or guess.goal.objective(guess.chosen) < found.goal.objective(found.chosen)
        ):
            found = guess
    if found is None:
        return None
    chosen = found.search.near(found.chosen, found.goal)
    return None if chosen is None else found._replace(chosen=chosen)


def _pools(search: Search, method: str, most: int, taken: Collection[str]) -> Iterator[_Pool]:
    """Pools worth trying: every kind that the method has, in several sizes."""
    able = [n for n in search.layers if n not in taken and method in search.able(n)]
    offered = {name: candidates(method, search.layers[name].spec) for name in able}
    smallest = search.smallest()
    kinds: dict[Any, SharesPool] = {one.pool: one for some in offered.values() for one in some}
    for kind, example in kinds.items():
        tables = {n: [s for s in some if s.pool == kind] for n, some in offered.items()}
        tables = {name: some for name, some in tables.items() if some}
        others = {name: one for name, one in smallest.items() if name not in tables}
        spare = max(most - total_bytes(others), 0)
        spec = search.layers[next(iter(tables))].spec
        row = shared_bytes(spec, method, example) / example.rows
        for share in SHARES:
            rows = int(share * spare / row)
            if len(tables) > 1 and rows > 1:
                wanted = {n: [replace(s, rows=rows) for s in some] for n, some in tables.items()}
                held = shared_bytes(spec, method, replace(example, rows=rows))
                yield _Pool(method, held, wanted)


def _settled(
    search: Search, goal: LeastLoss | LeastBytes, start: Chosen, pool: _Pool
) -> Pooled | None:
    """What is planned where a pool is made of those who then read it."""
    members, beside = tuple(pool.wanted), goal.beside(pool.bytes)
    menus = {name: search.menu(name) for name in members}
    found: Pooled | None = None
    for _ in range(ROUNDS):
        chosen = _offer(search, pool, members, menus).guess(start, beside)
        takers = tuple(n for n in pool.wanted if chosen and chosen[n].method == pool.method)
        if chosen is None or len(takers) < 2:
            return None
        found = Pooled(_offer(search, pool, takers, {}), beside, chosen)
        if takers == members:
            break
        members = takers
    return found


def _offer(search: Search, pool: _Pool, members: Group, others: Mapping[str, Menu]) -> Search:
    """The search in which tables may read the pool.

    Args:
        members: what it is made of.
        others: tables' other choices; those of a member that has none are the pool alone.
    """
    group = tuple(search.layers[name] for name in members)
    names = tuple(others) or members
    layers = {name: replace(search.layers[name], group=group) for name in names}
    menus = {name: _menu(search, pool, layers[name]) for name in names}
    if others:
        menus = {name: together([others[name], found]) for name, found in menus.items()}
    return search.offering({**search.layers, **layers}, menus)


def _menu(search: Search, pool: _Pool, layer: Layer) -> Menu:
    """A table's choices of the pool, without its bytes."""
    name, wanted = layer.spec.name, pool.wanted[layer.spec.name]
    readers = ", ".join(one.spec.name for one in layer.group)
    key = name, f"{pool.method}, pool {wanted[0].pool} of {readers}", False
    if key not in search.known:
        add = Counter(search.watch, "planning", len(wanted), "candidates").add
        (found,) = found_by_method(layer.spec, layer, {pool.method: wanted}, add).values()
        search.known[key] = menu(
            layer, (replace(choice, bytes=choice.bytes - pool.bytes) for choice in found)
        )
    return search.known[key]
