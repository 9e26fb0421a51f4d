"""What a compression method sees of a layer, and what it has to offer.

A method is one file in `embedcomp/methods` with

    Settings                               a frozen, keyword-only dataclass
    candidates(spec) -> list[Settings]     worth trying on this shape; none: cannot take it
    empty(spec, settings) -> Served        the served module, shapes and dtypes only
    compress(layer, settings) -> Served    the same module, filled

Settings that are a SharesDecoder give several tables one decoder, those that are a SharesPool one
pool of rows. Those that are `Searches` are searched for in a stage of training: the file then is a
`Searching` too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from embedcomp.modules.linear import ServedLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.sketch import (
    MOST_EXACT,
    Moment,
    Sketched,
    root_of,
)
from embedcomp.storage.columns import Columns
from embedcomp.storage.kmeans import sampled
from embedcomp.support.progress import Watch, quiet

T = TypeVar("T")

DRAWN_INPUTS = 2048  # of a linear layer, where an expectation has no formula


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """Shape of an embedding table."""

    name: str  # of the module in the model
    rows: int
    dim: int
    pooling: Literal["sum", "mean", "none"]  # "none": nn.Embedding
    features: tuple[str, ...] = ()
    last_offset: bool = True  # bags' offsets end with the number of ids, as torchrec's do
    padding_idx: int | None = None  # row that counts for nothing
    counted: bool = False  # it is known how often each row is looked up
    by_count: bool = False  # and but for the first two, rows lie in that order, so that the rare
    # ones are a tail


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """Shape of a linear layer."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    activation: str | None = None  # that follows it, if it is known
    tuned: bool = False  # afterwards, so that what only pays then is worth trying


Spec = TableSpec | LinearSpec
Served = CompressedTable | ServedLinear


@dataclass(frozen=True, kw_only=True)
class SharesDecoder(ABC):
    """Settings of a method by which tables of one width share a decoder.

    Those of equal `decoder` share it. Every one of them finds them all in its layer's `group`, and
    makes the same decoder of them; the copies are then made one, whose bytes count once.
    """

    rank: int  # rows of the decoder that a table's codes are for, the first ones
    most: int  # rows of the decoder

    @property
    @abstractmethod
    def decoder(self) -> Hashable:
        """What the decoder depends on but for the tables."""


class IdsMeet:
    """Settings of a method by which ids read the same rows.

    What that loses shows on the whole table alone: in a sample of it other ids would meet. Training
    brings the numbers far from the means that they begin with.
    """

    begins_far: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class SharesPool(IdsMeet, ABC):
    """Settings of a method by which tables read one pool of stored rows.

    Those of equal `pool` share it. Each table is made with a pool of its own, filled by its own
    rows, or by those of all in its layer's `group` as if they had its settings, from which a loss
    is predicted. What all begin with is then joined (`methods.parts.pooling.join`), and counts
    once.
    """

    rows: int  # of the pool

    @property
    @abstractmethod
    def pool(self) -> Hashable:
        """What the pool's shape depends on."""


@dataclass(frozen=True, kw_only=True)
class Searches:
    """Settings of a method that searches for better ones while a model trains, within the bytes.

    begins_far: whether the table in the search, and the form after it, begin far from where
        training will bring them.
    """

    begins_far: ClassVar[bool] = False
    start: Literal["searched", "initial"] = "searched"  # numbers that the form begins with then:
    # what the search left, or what it began with itself


@dataclass(frozen=True)
class TableStatistics:
    """Statistics of a table's rows as the log looks them up.

    counts: float64 [rows], times each row is looked up in the log; all 0: not known.
    gradient: float64 [dim, dim], G with 1/2 E[e^T G e] the loss a sample gains when looked-up rows
        are off by e; None: not measured.
    fisher: float64 [rows], mean over the log of the squared gradient of the loss by the row, summed
        over its columns.
    """

    counts: Tensor
    gradient: Tensor | None = None
    fisher: Tensor | None = None


@dataclass(frozen=True)
class LinearStatistics:
    """Statistics of a linear layer's inputs and outputs over the log.

    mean, second: float64 [inputs] and [inputs, inputs], E[x] and E[x x^T]; of many inputs the
        second is a sketch, which is multiplied and has a diagonal like a matrix.
    gradient: float64 [outputs, outputs], as in TableStatistics, for the layer's output.
    fisher: float64 [outputs], the same as TableStatistics' of the weight's rows.
    spread: E[(largest - smallest)^2] of the numbers of an input and 0; None: not measured.
    """

    mean: Tensor
    second: Moment
    gradient: Tensor | None = None
    fisher: Tensor | None = None
    spread: float | None = None

    @cached_property
    def covariance(self) -> Moment:
        if isinstance(self.second, Sketched):
            return self.second.centred
        return self.second - self.mean.outer(self.mean)

    @cached_property
    def drawn(self) -> Tensor:
        """Normal inputs of this mean and covariance, float32 [DRAWN_INPUTS, inputs].

        Always the same, in pairs on either side of the mean, so that theirs is exact.
        """
        root, generator = root_of(self.covariance).float(), torch.Generator().manual_seed(0)
        sizes = [root.along.shape[1], 0 if root.alone is None else len(root.alone)]
        numbers = torch.randn(DRAWN_INPUTS // 2, sum(sizes), generator=generator)
        along, alone = numbers.split(sizes, 1)
        off = along @ root.along.T
        if root.alone is not None:
            off += alone * root.alone
        return torch.cat([off, -off]) + self.mean.float()

    @classmethod
    def unmeasured(cls, inputs: int) -> LinearStatistics:
        """Inputs of mean zero and unit covariance."""
        zeros = torch.zeros(inputs, dtype=torch.float64)
        if inputs > MOST_EXACT:
            return cls(zeros, Sketched(zeros, zeros[:, None][:, :0], torch.ones_like(zeros)))
        return cls(zeros, torch.eye(inputs, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer to compress; its tensors are the model's own and are only read.

    weight: float32 [rows, dim] of a table, [outputs, inputs] of a linear layer.
    bias: float32 [outputs] or None.
    """

    spec: Spec
    weight: Tensor
    bias: Tensor | None
    statistics: TableStatistics | LinearStatistics
    stands_for: Tensor | None = None  # float64 [rows], rows of the table that each row of a sample
    # stands for
    drawn: bool = False  # its numbers were drawn at random, and nothing is learnt yet
    group: tuple[Layer, ...] = field(default=(), repr=False)  # the tables, with this one, that
    # share a decoder; empty: it has its own
    searched: CompressedTable | None = field(default=None, repr=False)  # the table as a search left
    # it, which says what of the layer is kept
    _shared: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    _codes: dict[Hashable, Columns] | None = field(default=None, repr=False)

    @property
    def bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def gradient(self) -> Tensor | None:
        return self.statistics.gradient

    @property
    def counts(self) -> Tensor | None:
        """How much each row of a table matters, float64 [rows]; None: all the same."""
        assert isinstance(self.statistics, TableStatistics)
        counts = self.statistics.counts
        return counts if bool(counts.any()) else None

    @property
    def own_counts(self) -> Tensor | None:
        """Counts of each row itself; in a sample, `counts` are of all rows that it stands for."""
        counts = self.counts
        return counts if counts is None or self.stands_for is None else counts / self.stands_for

    @property
    def fisher(self) -> Tensor | None:
        """Squared gradients of the weight's rows, float64 [rows]; None: not measured."""
        return self.statistics.fisher

    @property
    def output_weights(self) -> Tensor | None:
        """How much an error of each output of a linear layer matters, float64 [outputs]."""
        return None if self.gradient is None else self.gradient.diagonal()

    @property
    def inputs(self) -> LinearStatistics:
        assert isinstance(self.statistics, LinearStatistics)
        return self.statistics

    @property
    def mean_output(self) -> Tensor:
        """E[W x] of a linear layer, which is without its bias, float64 [outputs]."""
        return self.shared(_mean_output)

    @property
    def error_moment(self) -> Moment:
        """What weighs errors of a linear layer's weight, float64 [inputs, inputs].

        The inputs' covariance where a bias makes up for what the mean output loses.
        """
        return self.inputs.second if self.bias is None else self.inputs.covariance

    def shared(self, make: Callable[..., T], *settings: Hashable) -> T:
        """What the candidates of one layer have in common: `make(layer, *settings)`, made once.

        It is kept by all that it is made of, so `make` is a function that reads nothing else.
        """
        key = make, settings
        if key not in self._shared:
            self._shared[key] = make(self, *settings)
        found: T = self._shared[key]
        return found

    @contextmanager
    def trying(self) -> Iterator[Layer]:
        """The layer while many candidates of it are made: codes that they share are kept so long.

        They are as large as the layer, so nothing is kept of a candidate that is made alone.
        """
        codes: dict[Hashable, Columns] = {}
        try:
            yield replace(self, _codes=codes)
        finally:
            codes.clear()

    def within(self, whole: Layer) -> Layer:
        """The layer where it is made of another one, of which candidates are tried."""
        return replace(self, _codes=whole._codes)

    def codes(self, basis: Hashable, rank: int, make: Callable[[int | None], Columns]) -> Columns:
        """The first `rank` codes in a basis.

        Args:
            make: computes so many, or all for None.
        """
        if self._codes is None:
            return make(rank)
        if basis not in self._codes:
            self._codes[basis] = make(None)
        return self._codes[basis].first(rank)

    def columns(self) -> Columns:
        """The weight as it is; an error in a row matters as its look-ups, or its output, do."""
        weights = self.counts if isinstance(self.spec, TableSpec) else self.output_weights
        return self.codes("weight", self.weight.shape[1], lambda _: Columns(self.weight, weights))

    def sampled(self, most: int) -> Layer:
        """A table with at most `most` rows: the most looked-up half, and every so many-th other.

        The counts of the others are scaled up, so that weighted sums keep their expectation. It is
        what predicted losses are measured on; a table that is small enough is given back as it is.
        """
        assert isinstance(self.spec, TableSpec)
        if self.spec.rows <= most:
            return self
        return replace(self.shared(_sample, most), group=self.group)


def _mean_output(layer: Layer) -> Tensor:
    return layer.weight.double() @ layer.inputs.mean


def _sample(table: Layer, most: int) -> Layer:
    assert isinstance(table.spec, TableSpec)
    weights = torch.ones(table.spec.rows).double() if table.counts is None else table.counts
    kept, stands_for = sampled(weights, most)
    kept, order = kept.sort()
    stands_for = stands_for[order]
    fisher = None if table.fisher is None else table.fisher[kept]
    spec = replace(table.spec, rows=len(kept))
    statistics = TableStatistics(weights[kept] * stands_for, table.gradient, fisher)
    return Layer(spec, table.weight[kept], None, statistics, stands_for)


class Method(Protocol):
    """A file in `embedcomp/methods`."""

    Settings: type[Any]

    def candidates(self, spec: Spec) -> list[Any]: ...

    def empty(self, spec: Spec, settings: Any) -> Served: ...

    def compress(self, layer: Layer, settings: Any) -> Served: ...


class Suits(Method, Protocol):
    """A method's file whose candidates a layer's numbers say more of than its spec does."""

    def suited(self, layer: Layer, wanted: Sequence[Any]) -> list[Any]:
        """Better settings in the place of these candidates, of about their sizes."""
        ...

    def nearby(self, layer: Layer, settings: Any) -> list[Any]:
        """Settings near these that may suit the layer better; what reads it stays as it is."""
        ...


@dataclass(frozen=True)
class SearchedTable:
    """A table whose settings were searched for.

    layer: as the search began with it.
    settings: as planned.
    module: as `searching` made it, trained and thawed.
    """

    layer: Layer
    settings: Any
    module: CompressedTable


@dataclass(frozen=True)
class Room:
    """What settings that a search ends with are held against.

    bytes_of: the tables with these settings by name, and what reads them; infinite where some do
        not fit.
    most: bytes that they may take, which are those of the plan.
    knapsack: of each list of options, which are bytes and a loss, the place of the one to take, so
        that the losses are least within so many bytes.
    score: quality of the model, with its tables as they are set at the moment, on rows that it does
        not learn from; to be large.
    seed: of what is drawn at random.
    watch: is told how far the search is.
    """

    bytes_of: Callable[[Mapping[str, Any]], float]
    most: float
    knapsack: Callable[[Mapping[Any, Sequence[tuple[int, float]]], float], dict[Any, int]]
    score: Callable[[], float]
    seed: int
    watch: Watch = quiet


class Searching(Method, Protocol):
    """A method's file with settings that are `Searches`."""

    def searching(self, layer: Layer, settings: Any) -> CompressedTable:
        """What stands for the table in the stage "search", with a row of its own for each id."""
        ...

    def settle(self, tables: Mapping[str, SearchedTable], room: Room) -> Mapping[str, Any]:
        """Settings of all tables of the method, by name, at once."""
        ...
