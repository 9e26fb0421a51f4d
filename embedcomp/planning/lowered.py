"""The engine's operations that choices for layers would become, before anything is compressed.

The original's program says which operations are a layer's; the rest stays as it is. A choice for
a layer is taken as the engine would run it (engine/lowering): a low-rank layer is two products,
any other is one, in the precision that it is stored for; codes are decoded where something else
than linear layers reads them. So a layer that reads tables is as narrow as their choices make it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from embedcomp.engine.ops import Linear, LookUp, Op
from embedcomp.engine.program import Program
from embedcomp.graph.graph import Graph
from embedcomp.modules.embedded import Block, Reader, can_fold
from embedcomp.modules.linear import CompressedLinear, LowRankLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import Choice, empty_on_meta
from embedcomp.sensitivity.layer import Layer, Served, Spec

Widths = tuple[int, ...]  # inputs of each operation of a layer


class Product(NamedTuple):
    """A product with a weight [outputs, inputs], as the engine would run it.

    form: what is multiplied, as in native.FORMATS.
    pieces: that its inputs are brought together from.
    times: vectors a row.
    activation: function of what it puts out that is an operation of its own; empty: none.
    """

    inputs: int
    outputs: int
    form: str = "float32"
    pieces: int = 1
    times: int = 1
    bias: bool = False
    activation: str = ""


class Part(NamedTuple):
    """Columns that an operation reads: `width` of feature `feature`, or of something else."""

    feature: int | None
    width: int
    whole: bool = False  # all that the feature's rows have, and nobody had them decoded before


@dataclass(frozen=True)
class Place:
    """A linear operation of a layer in the original's program."""

    parts: tuple[Part, ...]
    pieces: int
    outputs: int
    times: int
    begins: bool  # a layer whose inputs are of two stages has an operation for each


class Lowered:
    """What the engine would make of choices for the layers of one model.

    Args:
        graph, program: of the original.
        readers, single_valued: which decoders are folded before the model is exported.
    """

    def __init__(
        self,
        graph: Graph,
        program: Program,
        *,
        layers: Mapping[str, Layer],
        readers: Mapping[str, Reader] | None = None,
        single_valued: Collection[str] = (),
    ):
        self.features, self.program, self.layers = graph.features, program, layers
        self._single = set(single_valued)
        self._blocks: dict[str, list[tuple[str, Block]]] = {}  # by table
        for name, reader in (readers or {}).items():
            for block in reader.blocks if name in layers else ():
                self._blocks.setdefault(block.table, []).append((name, block))
        self._read = _Read.of(program, layers, self.tables)
        self.readers: dict[str, dict[str, list[tuple[int, Part]]]] = {}  # by table and layer:
        # operation of the layer, and what it reads
        for name, places in self._read.places.items():
            for number, place in enumerate(places):
                for part in place.parts:
                    if part.feature is not None and part.whole:
                        of_table = self.readers.setdefault(self.tables[part.feature], {})
                        of_table.setdefault(name, []).append((number, part))
        self._shapes: dict[object, Shape] = {}

    @property
    def tables(self) -> list[str]:
        """Of each feature."""
        return [feature.table for feature in self.features]

    @property
    def linears(self) -> Collection[str]:
        """Layers that have products."""
        return self._read.places.keys()

    @property
    def fixed(self) -> tuple[Op, ...]:
        """Operations that no choice changes."""
        return self._read.fixed

    def shape(self, spec: Spec, choice: Choice) -> Shape:
        """A choice's; how many inputs a linear layer had when it was chosen is no matter."""
        key = spec.name, choice.method, choice.settings
        if key not in self._shapes:
            served = empty_on_meta(choice.method, spec, choice.settings)
            self._shapes[key] = Shape(served, None, frozenset())
            if isinstance(served, CompressedTable):
                folding = self._folding(spec.name, served)
                self._shapes[key] = Shape(served, LookedUp.of(served), folding)
        return self._shapes[key]

    def decoders(self, name: str, served: CompressedTable) -> Iterator[Product]:
        """Products that decode what is looked up in a table, feature by feature."""
        codes, folding = LookedUp.of(served), self._folding(name, served)
        for feature, table in enumerate(self.tables):
            if table != name:
                continue
            linears = self._read.linears.get(feature, set()) - folding
            if codes.counted and (feature in self._read.decoded or (linears and not codes.narrow)):
                yield Product(codes.width, served.dim, bias=True)
            if codes.scaled and folding:
                yield Product(codes.width, codes.width, bias=True)

    def products(
        self, name: str, served: nn.Module, widths: Sequence[int], folded: bool = False
    ) -> Iterator[Product]:
        """Products of a linear layer whose operations read these numbers of columns.

        Args:
            folded: decoders are folded into it, which gives it a bias.
        """
        bias = folded or getattr(served, "bias", None) is not None
        for place, inputs in zip(self._read.places.get(name, ()), widths, strict=True):
            one = Product(inputs, place.outputs, _form(served), place.pieces, place.times)
            if not isinstance(served, LowRankLinear):
                yield one._replace(bias=bias and place.begins)
            elif served.first.width:  # of rank 0 it puts out its bias
                yield from _two(one, served, place.begins, bias)

    def inputs(self, name: str, tables: Mapping[str, Choice]) -> Widths:
        """Columns that a layer's operations read where these were chosen for the tables."""
        return tuple(
            sum(self.width(part, name, tables) for part in place.parts)
            for place in self._read.places.get(name, ())
        )

    def width(self, part: Part, name: str, tables: Mapping[str, Choice]) -> int:
        """Columns of a part of what a layer reads."""
        if part.feature is None or not part.whole:
            return part.width
        table = self.tables[part.feature]
        if table not in tables:
            return part.width
        shape = self.shape(self.layers[table].spec, tables[table])
        codes = shape.codes
        assert codes is not None, "a table has codes"
        if name in shape.folding:
            return codes.width
        return codes.width + 1 if codes.counted and codes.narrow else part.width

    def _folding(self, table: str, served: CompressedTable) -> frozenset[str]:
        """The layers that a table's decoder is multiplied into before the model is exported."""
        blocks = self._blocks.get(table, ())
        return frozenset(name for name, block in blocks if can_fold(block, served, self._single))


def _two(one: Product, served: LowRankLinear, begins: bool, bias: bool) -> Iterator[Product]:
    """The products of a low-rank layer, of which `one` would be the only one of a whole one.

    Args:
        begins: else its sum is begun by another one, which the second factor reads.
    """
    rank, middle = served.first.width, begins and served.activation is not None
    slow = served.activation if middle and served.activation != "relu" else None
    yield one._replace(outputs=rank, bias=middle, activation=slow or "")
    if begins:
        yield Product(rank, one.outputs, times=one.times, bias=bias)


class Shape(NamedTuple):
    """What the time of a choice depends on."""

    served: Served
    codes: LookedUp | None  # of a table
    folding: frozenset[str]  # layers that its decoder is multiplied into


@dataclass(frozen=True)
class LookedUp:
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
    def of(cls, served: CompressedTable) -> LookedUp:
        width, scaled = served.code_width, served.scaled
        counted = scaled or served.decode is not None
        return cls(width, counted, scaled, width + 1 <= served.dim)


@dataclass(frozen=True)
class _Read:
    """A program's operations: those of layers, and those that are there whatever is chosen.

    places: of linear layers, by name.
    linears: layers that read the rows of a feature.
    decoded: features whose rows something else reads.
    """

    places: Mapping[str, tuple[Place, ...]]
    linears: Mapping[int, set[str]]
    decoded: set[int]
    fixed: tuple[Op, ...]

    @classmethod
    def of(cls, program: Program, layers: Collection[str], tables: Sequence[str]) -> _Read:
        looked_up = {
            (op.out, op.out_at): (op.feature, op.width)
            for op in program.ops
            if isinstance(op, LookUp)
        }
        places: dict[str, list[Place]] = {}
        linears: dict[int, set[str]] = {}
        decoded: set[int] = set()
        fixed: list[Op] = []
        for op in program.ops:
            if isinstance(op, LookUp):
                if tables[op.feature] not in layers:
                    fixed.append(op)
                continue
            parts = [p for piece in (*op.x, *op.y) for p in _parts(piece, looked_up, decoded)]
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
                parts = [Part(None, op.inputs)]  # of one vector
            if name not in layers:
                fixed.append(op)
                continue
            places.setdefault(name, []).append(
                Place(
                    parts=tuple(parts),
                    pieces=len(op.x),
                    outputs=op.outputs,
                    times=op.times,
                    begins=op.init < 0,
                )
            )
        return cls({n: tuple(p) for n, p in places.items()}, linears, decoded, tuple(fixed))


def _parts(
    piece: tuple[int, int, int],
    looked_up: Mapping[tuple[int, int], tuple[int, int]],
    decoded: set[int],
) -> list[Part]:
    """The features that a piece holds columns of, and what is left of it."""
    buffer, first, width = piece
    found, rest = [], width
    for (its, at), (feature, columns) in looked_up.items():
        shared = min(first + width, at + columns) - max(first, at)
        if its == buffer and shared > 0:
            found.append(Part(feature, shared, shared == columns and feature not in decoded))
            rest -= shared
    return [*found, Part(None, rest)] if rest else found


def _form(served: nn.Module) -> str:
    """The precision that a layer which is one matrix multiplies in."""
    return served.stored.kind.precision if isinstance(served, CompressedLinear) else "float32"
