"""The search for the best plan, where some layers become narrower by what others choose."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from embedcomp import methods
from embedcomp.compress.choices import (
    SAMPLED_ROWS,
    Choice,
    Chosen,
    Menu,
    choices,
    total_bytes,
    total_loss,
)
from embedcomp.compress.contract import Layer, TableSpec
from embedcomp.compress.folding import narrowed
from embedcomp.compress.solvers import Solver
from embedcomp.served.embedded import Reader

ROUNDS = 4  # of planning readers for tables and tables for readers


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


@dataclass(frozen=True)
class LeastBytes:
    """Within a predicted loss, the fewest bytes."""

    most_loss: float

    def solve(self, solver: Solver, options: Mapping[str, Menu]) -> Chosen | None:
        return solver.least_bytes(options, self.most_loss)

    def reached(self, chosen: Chosen) -> bool:
        return total_loss(chosen) <= self.most_loss

    def objective(self, chosen: Chosen) -> float:
        """What is to be small."""
        return total_bytes(chosen)


Goal = LeastLoss | LeastBytes
SMALLEST = LeastBytes(math.inf)


@dataclass
class Search:
    """Planning where some linear layers become narrower by what is chosen for the tables.

    For any tables, the readers' choices and so the best rest are as good as the solver. Tables and
    readers are planned in turns, from wide readers and from the smallest tables; the best plan that
    reaches the goal wins.
    """

    layers: Mapping[str, Layer]
    names: Collection[str]
    readers: Mapping[str, Reader]
    single_valued: set[str]
    solver: Solver
    _options: dict[str, Menu] = field(default_factory=dict)

    def best(self, goal: Goal) -> Chosen | None:
        plans = [self._from(start, goal) for start in self._starts()]
        feasible = [found for found in plans if found is not None]
        smallest = self.smallest()
        if goal.reached(smallest):
            feasible.append(smallest)
        return min(feasible, key=goal.objective, default=None)

    def smallest(self) -> Chosen:
        """The smallest plan with the smallest choice of each table."""
        tables = self._smallest_tables()
        options = {**self._fixed(tables), **self._of_readers(tables)}
        chosen = SMALLEST.solve(self.solver, options)
        assert chosen is not None
        return chosen

    def _smallest_tables(self) -> Chosen:
        chosen = SMALLEST.solve(self.solver, self._settled())
        assert chosen is not None
        return chosen

    def _starts(self) -> list[dict[str, Menu]]:
        """Choices of the readers to begin with."""
        wide = {n: self._choices(n) for n in self.layers if n in self.readers}
        return [wide, self._of_readers(self._smallest_tables())] if wide else [{}]

    def _from(self, start: dict[str, Menu], goal: Goal) -> Chosen | None:
        best, options = None, start
        for _ in range(ROUNDS):
            guess = goal.solve(self.solver, {**self._settled(), **options})
            if guess is None:
                break
            options = self._of_readers(guess)
            exact = goal.solve(self.solver, {**self._fixed(guess), **options})
            if exact is None:
                continue
            if best is not None and goal.objective(exact) >= goal.objective(best):
                break
            best = exact
        return best

    def _settled(self) -> dict[str, Menu]:
        """Choices of the layers whose shape depends on no other's."""
        return {name: self._choices(name) for name in self.layers if name not in self.readers}

    def _fixed(self, chosen: Chosen) -> dict[str, Menu]:
        """The same with the tables as chosen."""
        is_table = {n: isinstance(layer.spec, TableSpec) for n, layer in self.layers.items()}
        return {
            name: Menu(menu.layer, (chosen[name],)) if is_table[name] else menu
            for name, menu in self._settled().items()
        }

    def _choices(self, name: str) -> Menu:
        if name not in self._options:
            self._options[name] = self._with_keep(self.layers[name])
        return self._options[name]

    def _with_keep(self, layer: Layer) -> Menu:
        return choices(layer, dict.fromkeys(["keep", *self.names]))

    def _of_readers(self, tables: Mapping[str, Choice]) -> dict[str, Menu]:
        """Choices of the readers as narrow as these tables make them."""
        present = {name: r for name, r in self.readers.items() if name in self.layers}
        return {name: self._of_reader(name, reader, tables) for name, reader in present.items()}

    def _of_reader(self, name: str, reader: Reader, tables: Mapping[str, Choice]) -> Menu:
        read = {b.table: tables[b.table] for b in reader.blocks if b.table in tables}
        key = f"{name}: {read}"
        if key not in self._options:
            folded = {table: self._compressed(table, choice) for table, choice in read.items()}
            layer = narrowed(self.layers[name], reader, folded, self.single_valued)
            same = layer is self.layers[name]
            self._options[key] = self._choices(name) if same else self._with_keep(layer)
        return self._options[key]

    def _compressed(self, table: str, choice: Choice) -> tuple[Layer, nn.Module]:
        """A table as it was and as it is, on a sample of its rows."""
        layer = self.layers[table].sampled(SAMPLED_ROWS)
        return layer, methods.get(choice.method).compress(layer, choice.settings)
