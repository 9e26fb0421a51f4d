"""The search for the best plan, where some layers become narrower by what others choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from embedcomp import methods
from embedcomp.errors import BadSettings
from embedcomp.modules.embedded import Block, Reader, can_fold
from embedcomp.modules.table import CompressedBag
from embedcomp.planning.aside import by_layer
from embedcomp.planning.by_time import bytes_are_times, losses_are_times
from embedcomp.planning.choices import (
    Choice,
    Chosen,
    Menu,
    Wanted,
    apart,
    candidates,
    empty_bytes,
    empty_on_meta,
    every,
    few_of,
    front,
    menu,
    nearby,
    seen_of,
    suited,
    together,
    total_bytes,
    total_loss,
    total_nanoseconds,
)
from embedcomp.planning.folding import Codes, codes_of, narrowed
from embedcomp.planning.latency import Timing
from embedcomp.planning.sharing import shares_decoders, shares_pools
from embedcomp.planning.solvers import Solver, exact, highs
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.support.progress import Doing, Watch, quiet

ROUNDS = 4  # of planning readers for tables and tables for readers
WORTH_REFINING = 1e-3  # of the objective, which a round of settings near those chosen has to win
PROMISING = 1.25  # times the best objective: a plan that may become better than the best one

Known = dict[tuple[Hashable, str, bool], Menu]  # by layer (with what is folded into it, and what is
# tried of it where that is not all), method, and whether candidates were spared


@dataclass(frozen=True)
class LeastLoss:
    """Within a number of bytes, the smallest predicted loss."""

    most_bytes: int

    def solve(self, solver: Solver, options: Mapping[str, Menu]) -> Chosen | None:
        return solver.least_loss(options, self.most_bytes)

    def reached(self, chosen: Chosen) -> bool:
        return total_bytes(chosen) <= self.most_bytes

    def objective(self, chosen: Chosen) -> float:
        """What is to be small."""
        return total_loss(chosen)

    def beside(self, bytes: int) -> LeastLoss:
        """This limit where something else takes `bytes` of them."""
        return replace(self, most_bytes=self.most_bytes - bytes)


@dataclass(frozen=True)
class LeastBytes:
    """Within a predicted loss, the fewest bytes."""

    most_loss: float
    taken: int = 0  # bytes, beside what is chosen

    def solve(self, solver: Solver, options: Mapping[str, Menu]) -> Chosen | None:
        return solver.least_bytes(options, self.most_loss)

    def reached(self, chosen: Chosen) -> bool:
        return total_loss(chosen) <= self.most_loss

    def objective(self, chosen: Chosen) -> float:
        """What is to be small."""
        return self.taken + total_bytes(chosen)

    def beside(self, bytes: int) -> LeastBytes:
        """This limit where something else takes `bytes` more."""
        return replace(self, taken=self.taken + bytes)


@dataclass(frozen=True)
class LeastLossInTime:
    """Within a time of a call, and perhaps a number of bytes, the smallest predicted loss."""

    most_nanoseconds: int
    most_bytes: float = math.inf

    def solve(self, solver: Solver, options: Mapping[str, Menu]) -> Chosen | None:
        """One limit after the other: the plan for one of them often keeps to both."""
        in_time = bytes_are_times(solver.least_loss, options, self.most_nanoseconds)
        if in_time is None or total_bytes(in_time) <= self.most_bytes:
            return in_time
        in_bytes = solver.least_loss(options, self.most_bytes)
        if in_bytes is None or total_nanoseconds(in_bytes) <= self.most_nanoseconds:
            return in_bytes
        good = max(total_loss(in_time), total_loss(in_bytes))
        return highs.least_loss_in_both(options, self.most_bytes, self.most_nanoseconds, good)

    def reached(self, chosen: Chosen) -> bool:
        in_bytes = total_bytes(chosen) <= self.most_bytes
        return in_bytes and total_nanoseconds(chosen) <= self.most_nanoseconds

    def objective(self, chosen: Chosen) -> float:
        """What is to be small."""
        return total_loss(chosen)


@dataclass(frozen=True)
class LeastTime:
    """Whatever the loss, and perhaps within a number of bytes, the shortest time of a call."""

    most_bytes: float = math.inf

    def solve(self, solver: Solver, options: Mapping[str, Menu]) -> Chosen | None:
        return losses_are_times(exact.least_loss, options, self.most_bytes)

    def reached(self, chosen: Chosen) -> bool:
        return total_bytes(chosen) <= self.most_bytes

    def objective(self, chosen: Chosen) -> float:
        """What is to be small."""
        return total_nanoseconds(chosen)


Goal = LeastLoss | LeastBytes | LeastLossInTime | LeastTime
SMALLEST, FASTEST = LeastBytes(math.inf), LeastTime()


@dataclass(frozen=True)
class _Asked:
    """A layer whose choices are asked for.

    key: it is known by.
    names: gives the methods that it may be given.
    make: gives the layer.
    wanted: gives the candidates that are tried.
    """

    key: Hashable
    names: Callable[[], Collection[str]]
    make: Callable[[], Layer]
    wanted: Callable[[Spec, Collection[str]], Wanted] = every


@dataclass
class Search:
    """Planning where some linear layers become narrower by what is chosen for the tables.

    For any tables, the readers' choices and so the best rest are as good as the solver. Tables and
    readers are planned in turns, from wide readers, from the smallest tables and from the plan of a
    single method; the best plan that reaches the goal wins.

    Args:
        rest: methods for a layer that none of `names` takes.
        known: choices that searches of the same layers share, whatever their methods and goals.
        timing: says how long choices take, where a goal is about time.
        only: the one of `names` that may be used; None: all of them.
        to_rest: layers that are left to `rest`, whatever takes them.
        watch: is told how many candidates are made, and that plans are searched.
    """

    layers: Mapping[str, Layer]
    names: Collection[str]
    readers: Mapping[str, Reader]
    single_valued: set[str]
    solver: Solver
    rest: Collection[str] = ()
    known: Known = field(default_factory=dict)
    timing: Timing | None = None
    only: str | None = None
    to_rest: Collection[str] = ()
    watch: Watch = quiet
    _options: dict[Hashable, Menu] = field(default_factory=dict)
    _empty: dict[Hashable, Served] = field(default_factory=dict)  # tables as chosen, on torch's
    # meta device

    def best(self, goal: Goal) -> Chosen | None:
        starts = self._starts(goal)
        plans = [self._from(start, goal) for start in starts]
        feasible = [found for found in plans if found is not None]
        simple = None if isinstance(goal, LeastTime) else self._with_one_method(goal, feasible)
        if simple is not None:  # a mix is no worse, and may begin where it ends
            again = self._from(simple, goal)
            feasible += [simple] if again is None else [simple, again]
        ends = [*starts[1:], self.smallest()]
        feasible += [end for end in ends if goal.reached(end)]
        best = min(feasible, key=goal.objective, default=None)
        if best is None:
            return None
        best = self._refined(best, goal)
        readers = self._of_readers(best, thoroughly=True)
        polished = self._solved(goal, {**self._fixed(best), **readers}, best)
        found = [best] if polished is None else [best, polished]
        return min(found, key=goal.objective)

    def _with_one_method(self, goal: Goal, mixes: Collection[Chosen]) -> Chosen | None:
        """The plan of the single method that promises most before readers are narrowed.

        None: what it begins with is far from the best of the mixes.
        """
        several = self.only is None and len(self.names) > 1
        if not several or not any(name in self.readers for name in self.layers):
            return None
        alone = [replace(self, only=name, _options={}) for name in self.names]
        promises = [search._promise(goal) for search in alone]
        least = min(promises)
        if math.isinf(least):
            return None
        search = alone[promises.index(least)]
        begun = search._from({}, goal)
        most = PROMISING * min(map(goal.objective, mixes), default=math.inf)
        near = begun is None or goal.objective(begun) <= most
        return search.best(goal) if near else None

    def _promise(self, goal: Goal) -> float:
        """The objective of the best plan with readers as they are; infinite: there is none."""
        options = {name: self._choices(name) for name in self.layers}
        try:
            found = self._solved(goal, options, {})
        except BadSettings:  # a solver that chooses ranks, and a method without
            found = None
        return math.inf if found is None else goal.objective(found)

    def smallest(self) -> Chosen:
        """The smallest plan with the smallest choice of each table."""
        return self._end(SMALLEST)

    def fastest(self) -> Chosen:
        """The fastest plan that is found, whatever its loss."""
        found = self.best(FASTEST)
        assert found is not None
        return found

    def kept(self) -> Chosen:
        """Every layer as it is."""
        kept = {
            name: Menu(layer, tuple(c for c in self._choices(name) if c.method == "keep"))
            for name, layer in self.layers.items()
        }
        chosen = self._solved(SMALLEST, kept, {})
        assert chosen is not None
        return chosen

    def near(self, chosen: Chosen, goal: Goal) -> Chosen | None:
        """The best plan from the readers on that these tables' choices make as narrow."""
        found = self._from(chosen, goal)
        return None if found is None else self._refined(found, goal)

    def guess(self, chosen: Chosen, goal: Goal) -> Chosen | None:
        """What `near` begins with: its readers are those of the old choices."""
        return self._solved(goal, {**self._settled(), **self._of_readers(chosen)}, chosen)

    def menu(self, name: str) -> Menu:
        """Choices of a layer with nothing folded into it."""
        return self._choices(name)

    def offering(self, layers: Mapping[str, Layer], menus: Mapping[str, Menu]) -> Search:
        """This search with other choices for some layers, which are described anew."""
        options = dict(self._options)
        options.update(menus.items())
        return replace(self, layers=layers, known=dict(self.known), _options=options)

    def _end(self, goal: Goal) -> Chosen:
        tables = self._solved(goal, self._settled(), {})
        assert tables is not None
        readers = self._smallest_of_readers(tables) if goal is SMALLEST else None
        readers = readers or self._of_readers(tables, thoroughly=True)
        chosen = self._solved(goal, {**self._fixed(tables), **readers}, tables)
        assert chosen is not None
        return chosen

    def _solved(self, goal: Goal, options: dict[str, Menu], beside: Chosen) -> Chosen | None:
        """The best of the options; their times are those beside these choices."""
        self.watch(Doing("searching the best plan"))
        timed = self.timing.timed(options, beside) if self.timing else options
        return goal.solve(self.solver, timed)

    def _starts(self, goal: Goal) -> list[Chosen]:
        """Plans to begin with, by whose tables readers are narrow; the first has none."""
        if isinstance(goal, LeastLossInTime):
            fastest = self.best(LeastTime(goal.most_bytes))
            return [{}, self._end(SMALLEST), *([] if fastest is None else [fastest])]
        if isinstance(goal, LeastTime):
            return [{}, self._end(SMALLEST), self._end(FASTEST)]
        has_readers = any(name in self.readers for name in self.layers)
        return [{}, self._end(SMALLEST)] if has_readers else [{}]

    def _from(self, start: Chosen, goal: Goal) -> Chosen | None:
        best, beside = None, start
        for _ in range(ROUNDS):
            options = {**self._settled(), **self._of_readers(beside)}
            guess = self._solved(goal, options, beside)
            if guess is None:
                break
            beside = guess
            found = self._solved(goal, {**self._fixed(guess), **self._of_readers(guess)}, guess)
            if found is None:
                continue
            if best is not None and goal.objective(found) >= goal.objective(best):
                break
            best = beside = found
        return best

    def _refined(self, best: Chosen, goal: Goal) -> Chosen:
        """A plan no worse, whose tables may have settings that are near their own.

        What reads a table stays as wide, so its choices are taken to stay what they are until
        those of all tables are known.
        """
        for _ in range(ROUNDS if self._sparing else 0):
            near = self._nearby(best)
            if not near:
                break
            fixed = self._fixed(best)
            finer = {name: together([fixed[name], more]) for name, more in near.items()}
            guess = self._solved(goal, {**fixed, **finer, **self._of_readers(best)}, best)
            if guess is None:
                break
            found = self._solved(goal, {**self._fixed(guess), **self._of_readers(guess)}, guess)
            most = (1 - WORTH_REFINING) * goal.objective(best)
            if found is None or goal.objective(found) > most:
                break
            best = found
        return best

    def _nearby(self, chosen: Chosen) -> dict[str, Menu]:
        """Of each table whose method has settings near those chosen, what they are."""
        layers = [self.layers[name] for name in chosen]
        near = [(layer, nearby(layer, chosen[layer.spec.name])) for layer in layers]
        asked = [(layer, wanted) for layer, wanted in near if wanted]
        found = by_layer(asked, self.watch)
        return {
            layer.spec.name: menu(layer, next(iter(some.values())))
            for (layer, _), some in zip(asked, found, strict=True)
        }

    def _settled(self) -> dict[str, Menu]:
        """Choices of the layers whose shape depends on no other's."""
        settled = [name for name in self.layers if name not in self.readers]
        return self._menus({name: self._whole(name) for name in settled})

    def _fixed(self, chosen: Chosen) -> dict[str, Menu]:
        """The menus with the tables' choices fixed."""
        is_table = {n: isinstance(layer.spec, TableSpec) for n, layer in self.layers.items()}
        return {
            name: Menu(menu.layer, (chosen[name],)) if is_table[name] else menu
            for name, menu in self._settled().items()
        }

    def _choices(self, name: str) -> Menu:
        return self._menus({name: self._whole(name)})[name]

    def _whole(self, name: str) -> _Asked:
        """A layer with nothing folded into it."""

        def names() -> list[str]:
            shared = {n for n in self.able(name) if shares_decoders(n) or shares_pools(n)}
            return ["keep", *(method for method in self.able(name) if method not in shared)]

        return _Asked(name, names, lambda: self.layers[name])

    def able(self, name: str) -> list[str]:
        """Methods that a layer may be given.

        Shared decoders are planned in grouping.py and shared pools in pools.py.
        """
        offered = () if name in self.to_rest else self.names
        found = self._able(name, offered) or self._able(name, self.rest)
        if self.only is None:
            return found
        return [n for n in found if n == self.only or n not in self.names]

    def _able(self, name: str, offered: Collection[str]) -> list[str]:
        """Those of the methods that take a layer."""
        spec, others = self.layers[name].spec, dict.fromkeys(offered)
        return [n for n in others if n != "keep" and candidates(n, spec)]

    def _menus(self, asked: Mapping[str, _Asked]) -> dict[str, Menu]:
        """Choices of several layers by name; what is not known is found out of all at once."""
        names = {one.key: one.names() for one in asked.values() if one.key not in self._options}
        sparing = self._sparing
        missing = {
            key: [n for n in some if (key, n, sparing) not in self.known]
            for key, some in names.items()
        }
        layers = {one.key: one.make() for one in asked.values() if missing.get(one.key)}
        wanted = {one.key: one.wanted for one in asked.values()}
        parts = [
            (key, layer, part)
            for key, layer in layers.items()
            for part in map(partial(suited, layer), apart(wanted[key](layer.spec, missing[key])))
        ]
        found = by_layer([(layer, part) for _, layer, part in parts], self.watch, sparing)
        for (key, layer, _), choices in zip(parts, found, strict=True):
            self.known.update({(key, n, sparing): menu(layer, some) for n, some in choices.items()})
        for key, some in names.items():
            self._options[key] = together([self.known[key, name, sparing] for name in some])
        return {name: self._options[one.key] for name, one in asked.items()}

    @property
    def _sparing(self) -> bool:
        """Whether candidates are left out that a plan by bytes is unlikely to need.

        In time larger ones may be better, a solver of whole families may need them all, and without
        gradients nobody knows which losses are negligible.
        """
        measured = all(layer.gradient is not None for layer in self.layers.values())
        return measured and self.timing is None and not self._whole_families

    @property
    def _whole_families(self) -> bool:
        return bool(getattr(self.solver, "WHOLE_FAMILIES", False))

    def _of_readers(
        self, tables: Mapping[str, Choice], *, thoroughly: bool = False
    ) -> dict[str, Menu]:
        """Choices of the readers as narrow as these tables make them.

        Args:
            thoroughly: all there are, not only those that are likely the best.
        """
        in_short = not thoroughly and not self._whole_families
        return self._menus(self._asked_of_readers(tables, in_short))

    def _smallest_of_readers(self, tables: Mapping[str, Choice]) -> dict[str, Menu] | None:
        """The smallest choices of each method for readers as narrow as these tables make them.

        None: the smallest plan may be made of others, since the solver weighs whole families of
        choices or a method's smallest ones cannot be stored.
        """
        if self._whole_families:
            return None
        asked = self._asked_of_readers(tables, in_short=False)
        for name, one in asked.items():
            if one.key != name:  # something is folded into it
                asked[name] = replace(one, key=(one.key, "smallest"), wanted=_smallest)
        menus = self._menus(asked)
        found = {name: {choice.method for choice in menu} for name, menu in menus.items()}
        return menus if all(found[n] == set(one.names()) for n, one in asked.items()) else None

    def _asked_of_readers(self, tables: Mapping[str, Choice], in_short: bool) -> dict[str, _Asked]:
        present = {name: r for name, r in self.readers.items() if name in self.layers}
        return {name: self._read(name, r, tables, in_short) for name, r in present.items()}

    def _read(
        self, name: str, reader: Reader, tables: Mapping[str, Choice], in_short: bool
    ) -> _Asked:
        """A reader with the decoders of these tables folded into it."""
        read = {b.table: tables[b.table] for b in reader.blocks if self._folds(b, tables)}
        if not read:
            return self._whole(name)
        make = partial(self._narrow, name, reader, read)
        unbeaten = self._unbeaten(name)
        names = dict.fromkeys(["keep", *(choice.method for choice in unbeaten)])
        folded = name, tuple((table, one.method, one.settings) for table, one in read.items())
        if not in_short:
            return _Asked(folded, lambda: names, make)
        tried = frozenset((choice.method, choice.settings) for choice in unbeaten)
        key = folded, tried  # other searches may find others unbeaten
        return _Asked(key, lambda: names, make, partial(self._likely, name, tried))

    def _unbeaten(self, name: str) -> list[Choice]:
        """Choices for the whole reader that no smaller (or faster) one beats."""
        menu = self._choices(name)
        found = front(menu)
        if self.timing:
            found += front(self.timing.timed({name: menu}, {})[name], "nanoseconds")
        return found

    def _likely(
        self, name: str, tried: Collection[tuple[str, Any]], spec: Spec, names: Collection[str]
    ) -> Wanted:
        """Candidates of a narrower reader that are unbeaten for the whole one.

        Seven in eight of those on the convex hull of all are among them, and others are as good. A
        reader of less than half the width is another layer, of which every third one is tried.
        """
        full, found = self.layers[name].spec, every(spec, names)
        assert isinstance(spec, LinearSpec) and isinstance(full, LinearSpec)
        if 2 * spec.inputs < full.inputs:
            return {method: few_of(some) for method, some in found.items()}
        return {
            method: [s for s in some if method == "keep" or (method, s) in tried]
            for method, some in found.items()
        }

    def _folds(self, block: Block, tables: Mapping[str, Choice]) -> bool:
        """Whether a block's table, as chosen, has a decoder that the reader takes in."""
        if block.table not in tables:
            return False
        choice, spec = tables[block.table], self.layers[block.table].spec
        key = block.table, choice.method, choice.settings
        if key not in self._empty:
            self._empty[key] = empty_on_meta(choice.method, spec, choice.settings)
        return can_fold(block, self._empty[key], self.single_valued)

    def _narrow(self, name: str, reader: Reader, read: Mapping[str, Choice]) -> Layer:
        folded = {table: self._codes(table, choice) for table, choice in read.items()}
        return narrowed(self.layers[name], reader, folded)

    def _codes(self, table: str, choice: Choice) -> Codes:
        """Codes of a table, on the rows that its choice is tried on."""
        layer = seen_of(self.layers[table], {choice.method: (choice.settings,)})
        return layer.shared(_codes, choice.method, choice.settings)


def _codes(layer: Layer, method: str, settings: Any) -> Codes:
    bag = methods.get(method).compress(layer, settings)
    assert isinstance(bag, CompressedBag)
    return codes_of(layer, bag)


def _smallest(spec: Spec, names: Collection[str]) -> Wanted:
    """The candidates of each method that take the fewest bytes."""
    wanted = {}
    for name, some in every(spec, names).items():
        sizes = [empty_bytes(name, spec, settings) for settings in some]
        wanted[name] = [s for s, size in zip(some, sizes, strict=True) if size == min(sizes)]
    return wanted
