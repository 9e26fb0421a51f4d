"""The search for the best plan, where some layers become narrower by what others choose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from embedcomp import methods
from embedcomp.compress.choices import SAMPLED_ROWS, Choice, choices
from embedcomp.compress.contract import Layer, TableSpec
from embedcomp.compress.folding import narrowed
from embedcomp.compress.knapsack import Chosen, solve, total_loss
from embedcomp.served.embedded import Reader

ROUNDS = 4  # of planning readers for tables and tables for readers


@dataclass
class Search:
    """Planning where some linear layers become narrower by what is chosen for the tables.

    For any tables, the readers' choices and so the best rest are exact. Tables and readers are
    planned in turns, from wide readers and from the smallest tables; the best plan that fits wins.
    """

    layers: Mapping[str, Layer]
    names: Collection[str]
    readers: Mapping[str, Reader]
    single_valued: set[str]
    _options: dict[str, list[Choice]] = field(default_factory=dict)

    def best(self, limit: int) -> Chosen | None:
        plans = [self._from(start, limit) for start in self._starts()]
        feasible = [found for found in plans if found is not None]
        return min(feasible, key=total_loss, default=None)

    def smallest(self) -> Chosen:
        """The smallest choice of each table, and of all that is left then."""
        tables = {name: found[0] for name, found in self._settled().items()}
        return tables | {name: found[0] for name, found in self._of_readers(tables).items()}

    def _starts(self) -> list[dict[str, list[Choice]]]:
        """Choices of the readers to begin with."""
        wide = {n: self._choices(n) for n in self.layers if n in self.readers}
        return [wide, self._of_readers(self.smallest())] if wide else [{}]

    def _from(self, start: dict[str, list[Choice]], limit: int) -> Chosen | None:
        best, options = None, start
        for _ in range(ROUNDS):
            guess = solve({**self._settled(), **options}, limit)
            if guess is None:
                break
            options = self._of_readers(guess)
            exact = solve({**self._fixed(guess), **options}, limit)
            if exact is None:
                continue
            if best is not None and total_loss(exact) >= total_loss(best):
                break
            best = exact
        return best

    def _settled(self) -> dict[str, list[Choice]]:
        """Choices of the layers whose shape depends on no other's."""
        return {name: self._choices(name) for name in self.layers if name not in self.readers}

    def _fixed(self, chosen: Chosen) -> dict[str, list[Choice]]:
        """The same with the tables as chosen."""
        is_table = {n: isinstance(layer.spec, TableSpec) for n, layer in self.layers.items()}
        return {n: [chosen[n]] if is_table[n] else c for n, c in self._settled().items()}

    def _choices(self, name: str) -> list[Choice]:
        if name not in self._options:
            self._options[name] = self._with_keep(self.layers[name])
        return self._options[name]

    def _with_keep(self, layer: Layer) -> list[Choice]:
        return choices(layer, dict.fromkeys(["keep", *self.names]))

    def _of_readers(self, tables: Mapping[str, Choice]) -> dict[str, list[Choice]]:
        """Choices of the readers as narrow as these tables make them."""
        present = {name: r for name, r in self.readers.items() if name in self.layers}
        return {name: self._of_reader(name, reader, tables) for name, reader in present.items()}

    def _of_reader(self, name: str, reader: Reader, tables: Mapping[str, Choice]) -> list[Choice]:
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
