"""The search for the best plan, where some layers become narrower by what others choose."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from embedcomp import methods
from embedcomp.compress.choices import SAMPLED_ROWS, Choice, choices, empty_on_meta, front
from embedcomp.compress.contract import Layer, TableSpec
from embedcomp.compress.folding import narrowed
from embedcomp.compress.knapsack import Chosen, solve, total_loss
from embedcomp.served.embedded import Block, Reader, can_fold

ROUNDS = 4  # of planning readers for tables and tables for readers

Known = dict[tuple[str, str], list[Choice]]  # by layer (and what is folded into it) and method


@dataclass
class Search:
    """Planning where some linear layers become narrower by what is chosen for the tables.

    For any tables, the readers' choices and so the best rest are exact. Tables and readers are
    planned in turns, from wide readers and from the smallest tables; the best plan that fits wins.

    Args:
        known: choices that searches of the same layers share, whatever their methods and limits.
    """

    layers: Mapping[str, Layer]
    names: Collection[str]
    readers: Mapping[str, Reader]
    single_valued: set[str]
    known: Known = field(default_factory=dict)
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
            self._options[name] = self._with_keep(name, lambda: self.layers[name])
        return self._options[name]

    def _with_keep(self, key: str, make: Callable[[], Layer]) -> list[Choice]:
        """Choices of a layer, which is only made if some are not known under `key`."""
        names = list(dict.fromkeys(["keep", *self.names]))
        missing = [name for name in names if (key, name) not in self.known]
        if missing:
            layer = make()
            for name in missing:
                self.known[key, name] = choices(layer, [name])
        return front([choice for name in names for choice in self.known[key, name]])

    def _of_readers(self, tables: Mapping[str, Choice]) -> dict[str, list[Choice]]:
        """Choices of the readers as narrow as these tables make them."""
        present = {name: r for name, r in self.readers.items() if name in self.layers}
        return {name: self._of_reader(name, reader, tables) for name, reader in present.items()}

    def _of_reader(self, name: str, reader: Reader, tables: Mapping[str, Choice]) -> list[Choice]:
        read = {b.table: tables[b.table] for b in reader.blocks if self._folds(b, tables)}
        if not read:
            return self._choices(name)
        key = f"{name}: {read}"
        if key not in self._options:
            self._options[key] = self._with_keep(key, lambda: self._narrow(name, reader, read))
        return self._options[key]

    def _folds(self, block: Block, tables: Mapping[str, Choice]) -> bool:
        """Whether a block's table, as chosen, has a decoder that the reader takes in."""
        if block.table not in tables:
            return False
        choice, spec = tables[block.table], self.layers[block.table].spec
        empty = empty_on_meta(choice.method, spec, choice.settings)
        return can_fold(block, empty, self.single_valued)

    def _narrow(self, name: str, reader: Reader, read: Mapping[str, Choice]) -> Layer:
        folded = {table: self._compressed(table, choice) for table, choice in read.items()}
        return narrowed(self.layers[name], reader, folded, self.single_valued)

    def _compressed(self, table: str, choice: Choice) -> tuple[Layer, nn.Module]:
        """A table as it was and as it is, on a sample of its rows."""
        layer = self.layers[table].sampled(SAMPLED_ROWS)
        return layer, methods.get(choice.method).compress(layer, choice.settings)
