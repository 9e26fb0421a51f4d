"""What a plan would cost in microseconds a call, layer by layer, before anything is compressed.

The original's program says which operations are a layer's; the rest stays as it is. A choice for
a layer is counted as the engine would run it (engine/lowering): a low-rank layer is two products,
any other is one, in the precision that it is stored for; codes are decoded where something else
than linear layers reads them. So a layer that reads tables is as narrow as their choices make it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from embedcomp.engine import cost, ops
from embedcomp.engine.cost import CostModel, Counts
from embedcomp.engine.ops import Linear, LookUp, Op
from embedcomp.engine.program import Program
from embedcomp.graph.graph import Graph
from embedcomp.modules.embedded import Block, Reader, can_fold
from embedcomp.modules.linear import CompressedLinear, LowRankLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import (
    Choice,
    Chosen,
    Menu,
    empty_on_meta,
)
from embedcomp.planning.goal import LatencyBudget
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.index import Map
from embedcomp.storage.kind import Reads

Widths = tuple[int, ...]  # inputs of each operation of a layer


class _Part(NamedTuple):
    """Columns that an operation reads: `width` of feature `feature`, or of something else."""

    feature: int | None
    width: int
    whole: bool = False  # all that the feature's rows have, and nobody had them decoded before


@dataclass(frozen=True)
class _Product:
    """A linear operation of a layer in the original's program."""

    parts: tuple[_Part, ...]
    pieces: int
    outputs: int
    times: int
    begins: bool  # a layer whose inputs are of two stages has an operation for each


class Timing:
    """Counts the choices for the layers of one model.

    Args:
        graph, program: of the original.
        model: of the machine that serves.
        budget: what is allowed, and for how many rows; each has its own user.
        ids: of a bag, by feature; those that are not named have one.
        readers, single_valued: which decoders are folded before the model is exported.
    """

    def __init__(
        self,
        graph: Graph,
        program: Program,
        model: CostModel,
        budget: LatencyBudget,
        *,
        layers: Mapping[str, Layer],
        ids: Mapping[str, float] | None = None,
        readers: Mapping[str, Reader] | None = None,
        single_valued: Collection[str] = (),
    ):
        self.model, self.budget, self.rows = model, budget, budget.rows
        self._layers, self._single = layers, set(single_valued)
        self._tables = [feature.table for feature in graph.features]
        self._ids = [(ids or {}).get(feature.name, 1) for feature in graph.features]
        self._counts = [feature.count for feature in graph.features]
        self._blocks: dict[str, list[tuple[str, Block]]] = {}  # by table
        for name, reader in (readers or {}).items():
            for block in reader.blocks if name in layers else ():
                self._blocks.setdefault(block.table, []).append((name, block))
        self._read = _Read.of(program, layers, self._tables)
        ids_of = dict(enumerate(self._ids))
        self.fixed_work = ops.counts(self._read.fixed, self.rows, ids_of)
        self._reads: dict[str, dict[str, list[tuple[int, _Part]]]] = {}  # by table and layer:
        # operation of the layer, and what it reads
        for name, products in self._read.products.items():
            for place, product in enumerate(products):
                for part in product.parts:
                    if part.feature is not None and part.whole:
                        of_table = self._reads.setdefault(self._tables[part.feature], {})
                        of_table.setdefault(name, []).append((place, part))
        self.slower = 1.0  # calls than predicted, as far as somebody measured
        self._known: dict[object, int] = {}
        self._shapes: dict[object, _Shape] = {}

    @property
    def fixed(self) -> int:
        """Nanoseconds of the operations that no choice changes."""
        return _nanoseconds(self.model.of(self.fixed_work))

    def allowed(self, original: int) -> int:
        """Predicted nanoseconds that keep to the budget, where the original's are `original`."""
        return int(self.budget.nanoseconds(original) / self.slower)

    def timed(self, options: Mapping[str, Menu], beside: Chosen) -> dict[str, Menu]:
        """The choices with their nanoseconds beside those that were made for the other layers.

        What a table's choice saves the linear layers that read it is counted to the table, as far
        as it differs from the one beside.
        """
        widths = {name: self.inputs(name, beside) for name in self._read.products}
        return {name: self._timed(menu, beside, widths) for name, menu in options.items()}

    def _timed(self, menu: Menu, beside: Chosen, widths: Mapping[str, Widths]) -> Menu:
        spec = menu.layer.spec
        found = []
        for choice in menu:
            taken = self._of(spec, choice, widths.get(spec.name, ()))
            if beside.get(spec.name, choice) != choice:
                taken += self._of_readers(spec.name, choice, beside, widths)
            found.append(replace(choice, nanoseconds=taken))
        return Menu(menu.layer, tuple(found))

    def _of_readers(
        self, table: str, choice: Choice, beside: Chosen, widths: Mapping[str, Widths]
    ) -> int:
        """What the layers that read a table take more where it has another choice."""
        more = 0
        for name, parts in self._reads.get(table, {}).items():
            if name not in beside:
                continue
            moved = list(widths[name])
            for place, part in parts:
                moved[place] += self._width(part, name, {table: choice})
                moved[place] -= self._width(part, name, beside)
            spec = self._layers[name].spec
            more += self._of(spec, beside[name], tuple(moved))
            more -= self._of(spec, beside[name], widths[name])
        return more

    def _of(self, spec: Spec, choice: Choice, widths: Widths) -> int:
        """Nanoseconds of a layer's choice; `widths` are those of a linear layer's operations."""
        key = spec.name, choice.method, choice.settings, widths
        if key not in self._known:
            served = self._shape(spec, choice).served
            if isinstance(served, CompressedTable):
                work = self.of_table(spec.name, served)
            else:
                work = self.of_linear(spec.name, served, widths)
            self._known[key] = _nanoseconds(self.model.of(work))
        return self._known[key]

    def _shape(self, spec: Spec, choice: Choice) -> _Shape:
        """A choice's; how many inputs a linear layer had when it was chosen is no matter."""
        key = spec.name, choice.method, choice.settings
        if key not in self._shapes:
            served = empty_on_meta(choice.method, spec, choice.settings)
            self._shapes[key] = _Shape(served, None, frozenset())
            if isinstance(served, CompressedTable):
                folding = self._folding(spec.name, served)
                self._shapes[key] = _Shape(served, _Codes.of(served), folding)
        return self._shapes[key]

    def of_table(self, name: str, served: CompressedTable) -> Counts:
        """Lookups of a table and decoding what they give."""
        found, codes = Counts(), _Codes.of(served)
        folding = self._folding(name, served)
        for feature, table in enumerate(self._tables):
            if table != name:
                continue
            ids = self._ids[feature] * self._counts[feature]
            found += cost.look_up(self.rows, reads_of(served), ids)
            linears = self._read.linears.get(feature, set()) - folding
            if codes.counted and (feature in self._read.decoded or (linears and not codes.narrow)):
                found += cost.linear(self.rows, inputs=codes.width, outputs=served.dim)
            if codes.scaled and folding:
                found += cost.linear(self.rows, inputs=codes.width, outputs=codes.width)
        return found

    def of_linear(self, name: str, served: nn.Module, widths: Sequence[int]) -> Counts:
        """Products of a linear layer whose operations read these numbers of columns."""
        found = Counts()
        for product, inputs in zip(self._read.products.get(name, ()), widths, strict=True):
            if isinstance(served, LowRankLinear):
                found += self._two_products(product, served, inputs)
            else:
                outputs, form = product.outputs, _form(served)
                found += self._one_product(product, inputs, outputs, form)
        return found

    def _two_products(self, product: _Product, served: LowRankLinear, inputs: int) -> Counts:
        rank = served.first.width
        if not rank:  # it puts out its bias
            return Counts()
        found = self._one_product(product, inputs, rank)
        if not product.begins:  # its sum is begun by another one, which the second factor reads
            return found
        if served.activation not in (None, "relu"):
            found += {f"{served.activation} numbers": self.rows * product.times * rank}
        second = replace(product, pieces=1)
        return found + self._one_product(second, rank, product.outputs)

    def _one_product(
        self, product: _Product, inputs: int, outputs: int, form: str = "float32"
    ) -> Counts:
        return cost.linear(
            self.rows,
            inputs=inputs,
            outputs=outputs,
            form=form,
            pieces=product.pieces,
            times=product.times,
        )

    def inputs(self, name: str, tables: Mapping[str, Choice]) -> Widths:
        """Columns that a layer's operations read where these were chosen for the tables."""
        return tuple(
            sum(self._width(part, name, tables) for part in product.parts)
            for product in self._read.products.get(name, ())
        )

    def _width(self, part: _Part, name: str, tables: Mapping[str, Choice]) -> int:
        if part.feature is None or not part.whole:
            return part.width
        table = self._tables[part.feature]
        if table not in tables:
            return part.width
        shape = self._shape(self._layers[table].spec, tables[table])
        codes = shape.codes
        assert codes is not None, "a table has codes"
        if name in shape.folding:
            return codes.width
        return codes.width + 1 if codes.counted and codes.narrow else part.width

    def _folding(self, table: str, served: CompressedTable) -> frozenset[str]:
        """The layers that a table's decoder is multiplied into before the model is exported."""
        blocks = self._blocks.get(table, ())
        return frozenset(name for name, block in blocks if can_fold(block, served, self._single))


class _Shape(NamedTuple):
    """What the time of a choice depends on."""

    served: Served
    codes: _Codes | None  # of a table
    folding: frozenset[str]  # layers that its decoder is multiplied into


@dataclass(frozen=True)
class _Codes:
    """What the engine makes of a table.

    width: numbers that a lookup gives, without how many ids they are the sum of.
    counted: they have to be decoded, which that number is needed for.
    scaled: so do the codes themselves, which are whole numbers.
    narrow: a linear layer takes them as they are, with its weight multiplied by the decoder.
    """

    width: int
    counted: bool
    scaled: bool
    narrow: bool

    @classmethod
    def of(cls, served: CompressedTable) -> _Codes:
        stored = served.stored
        scaled = stored.kind.scaled
        counted = scaled or served.decode is not None
        return cls(stored.width, counted, scaled, stored.width + 1 <= served.dim)


@dataclass(frozen=True)
class _Read:
    """A program's operations: those of layers, and those that are there whatever is chosen.

    products: of linear layers, by name.
    linears: layers that read the rows of a feature.
    decoded: features whose rows something else reads.
    """

    products: Mapping[str, tuple[_Product, ...]]
    linears: Mapping[int, set[str]]
    decoded: set[int]
    fixed: tuple[Op, ...]

    @classmethod
    def of(cls, program: Program, layers: Collection[str], tables: Sequence[str]) -> _Read:
        places = {
            (op.out, op.out_at): (op.feature, op.table.width)
            for op in program.ops
            if isinstance(op, LookUp)
        }
        products: dict[str, list[_Product]] = {}
        linears: dict[int, set[str]] = {}
        decoded: set[int] = set()
        fixed: list[Op] = []
        for op in program.ops:
            if isinstance(op, LookUp):
                if tables[op.feature] not in layers:
                    fixed.append(op)
                continue
            parts = [p for piece in (*op.x, *op.y) for p in _parts(piece, places, decoded)]
            if not isinstance(op, Linear):
                decoded |= {part.feature for part in parts if part.feature is not None}
                fixed.append(op)
                continue
            name = op.name.removesuffix(".weight")
            if op.times == 1:
                for part in parts:
                    if part.feature is not None and part.whole:
                        linears.setdefault(part.feature, set()).add(name)
                decoded |= {p.feature for p in parts if p.feature is not None and not p.whole}
            else:
                decoded |= {part.feature for part in parts if part.feature is not None}
                parts = [_Part(None, op.inputs)]  # of one vector
            if name not in layers:
                fixed.append(op)
                continue
            products.setdefault(name, []).append(
                _Product(
                    parts=tuple(parts),
                    pieces=len(op.x),
                    outputs=op.outputs,
                    times=op.times,
                    begins=op.init < 0,
                )
            )
        return cls({n: tuple(p) for n, p in products.items()}, linears, decoded, tuple(fixed))


def _parts(
    piece: tuple[int, int, int],
    places: Mapping[tuple[int, int], tuple[int, int]],
    decoded: set[int],
) -> list[_Part]:
    """The features that a piece holds columns of, and what is left of it."""
    buffer, first, width = piece
    found, rest = [], width
    for (its, at), (feature, columns) in places.items():
        shared = min(first + width, at + columns) - max(first, at)
        if its == buffer and shared > 0:
            found.append(_Part(feature, shared, shared == columns and feature not in decoded))
            rest -= shared
    return [*found, _Part(None, rest)] if rest else found


def reads_of(served: CompressedTable) -> Reads:
    """Work of reading a row of a table."""
    stored = served.stored
    reads = stored.kind.reads(stored.rows, stored.width)
    return replace(reads, mapped=isinstance(served.index, Map))


def _form(served: nn.Module) -> str:
    """The precision that a layer which is one matrix multiplies in."""
    return served.stored.kind.precision if isinstance(served, CompressedLinear) else "float32"


def _nanoseconds(microseconds: float) -> int:
    """Whole ones, whose sums are exact whatever their order."""
    return math.ceil(1000 * microseconds)
