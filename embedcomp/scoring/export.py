"""A model's dense part as a program that needs none of the model's code.

Every embedding lookup is taken out: what it gives becomes an input of the program, and the ids that
it was asked for become an output. torch.export makes the program; where the engine has all its
operations, `trace` makes a Graph of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embedcomp.errors import BadModel
from embedcomp.log import rows as log_rows
from embedcomp.log.batches import to_batch
from embedcomp.log.features import Features
from embedcomp.scoring import native
from embedcomp.scoring.engine import Engine
from embedcomp.scoring.graph import Feature, Graph, Leaf, LookUp
from embedcomp.scoring.inputs import leaves, with_leaves
from embedcomp.scoring.lower import lower
from embedcomp.scoring.prepare import prepared
from embedcomp.scoring.standalone import Standalone
from embedcomp.scoring.tensors import StoredMatrix, Table
from embedcomp.scoring.trace import ROWS, CannotTrace, Fixed, Rows, Tracer, id_column, pruned
from embedcomp.served.embedded import Embedded, folds
from embedcomp.served.layout import layouts
from embedcomp.served.linear import ACTIVATIONS, CompressedLinear, LowRankLinear
from embedcomp.served.rows import StoredRows
from embedcomp.served.table import CompressedBag, CompressedEmbedding, CompressedTable

Score = Callable[[nn.Module, Any], Tensor]
COLLECTIONS = (EmbeddingBagCollection, EmbeddingCollection)
TABLES = (nn.EmbeddingBag, nn.Embedding, CompressedBag, CompressedEmbedding)
CHECKED_ROWS = (1, 2, 7)
TOLERANCE = 1e-4  # of a logit, between the model and what was made of it
SIZES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43)  # of batches, of which some are no other dimension


class CannotExport(BadModel):
    """A model that does not come apart from its lookups, or that torch cannot export."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The dense part: (leaves' tensors, what the lookups give, weights) to (logits, ids)."""

    program: ExportedProgram
    leaves: tuple[Leaf, ...]
    look_ups: tuple[LookUp, ...]
    weights: tuple[str, ...]
    graph: Graph | None
    reason: str  # why there is no graph


@torch.no_grad()
def export(model: nn.Module, score: Score, example: Any) -> Exported:
    """Export a model's dense part.

    Args:
        score: (model, inputs) -> logits [B].
        example: inputs of at least one row; every tensor has the batch first, and so has a
            KeyedJaggedTensor.

    Raises:
        CannotExport: naming the line of the model that stands in the way.
    """
    found = [leaf for leaf in leaves(example) if isinstance(leaf[1], Tensor | KeyedJaggedTensor)]
    rows = _batch_rows(found)
    size = _unlike(model, found)
    given = rebatched(example, rows, torch.arange(size) % rows)
    described = tuple(_leaf(name, value) for name, value in leaves(given))
    was_training = model.training
    model.eval()
    try:
        with _plain_linears(model), _taken_apart(model) as calls:
            wanted = score(model, given).reshape(-1)
            if wanted.shape != (size,):
                raise CannotExport(
                    f"score gave {tuple(wanted.shape)} logits for {size} rows; it must give [B]"
                )
            program, weights = _exported(model, score, given, calls)
    finally:
        model.train(was_training)
    look_ups = tuple(call.what for call in calls.made)
    graph, reason = _graph(program, described, look_ups, weights)
    return Exported(
        program=program,
        leaves=described,
        look_ups=look_ups,
        weights=tuple(weights),
        graph=graph,
        reason=reason,
    )


def rebatched(inputs: Any, rows: int, picked: Tensor) -> Any:
    """The inputs' rows `picked`, in that order; what has no rows stays as it is."""

    def pick(name: str, value: Any) -> Any:
        if isinstance(value, KeyedJaggedTensor):
            keys = len(value.keys())
            places = (torch.arange(keys)[:, None] * rows + picked).reshape(-1)
            lengths = value.lengths()
            starts = lengths.cumsum(0) - lengths
            taken = lengths[places]
            within = torch.arange(int(taken.sum())) - torch.repeat_interleave(
                taken.cumsum(0) - taken, taken
            )
            values = torch.repeat_interleave(starts[places], taken) + within
            weights = value.weights_or_none()
            return KeyedJaggedTensor(
                keys=value.keys(),
                values=value.values()[values],
                lengths=taken,
                weights=None if weights is None else weights[values],
            )
        return value[picked] if isinstance(value, Tensor) and value.dim() else value

    return with_leaves(inputs, pick)


def tensors(inputs: Any) -> list[Tensor]:
    """The inputs' tensors as the program takes them: a jagged one as values, lengths, weights."""
    found: list[Tensor] = []
    for _, value in leaves(inputs):
        if isinstance(value, KeyedJaggedTensor):
            found += [value.values(), value.lengths()]
            if value.weights_or_none() is not None:
                found.append(value.weights())
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def _batch_rows(found: Sequence[tuple[str, Any]]) -> int:
    sizes = {
        name: value.stride() if isinstance(value, KeyedJaggedTensor) else len(value)
        for name, value in found
        if isinstance(value, KeyedJaggedTensor) or value.dim()
    }
    if not sizes:
        raise CannotExport("the example has no tensor and no KeyedJaggedTensor")
    rows = next(iter(sizes.values()))
    for name, other in sizes.items():
        if other != rows or rows < 1:
            raise CannotExport(
                f"example{name} has {other} rows, but example{next(iter(sizes))} has {rows}; every "
                "tensor of the inputs must have the batch first, with at least one row"
            )
    return rows


def _unlike(model: nn.Module, found: Sequence[tuple[str, Any]]) -> int:
    """A number of rows that is no other dimension, which export would take for the same."""
    taken = {n for p in model.parameters() for n in p.shape}
    for _, value in found:
        if isinstance(value, Tensor):
            taken |= set(value.shape[1:])
        else:
            taken |= {len(value.keys())}
    return next((size for size in SIZES if size not in taken), 1009)


def _leaf(name: str, value: Any) -> Leaf:
    if isinstance(value, KeyedJaggedTensor):
        weighted = value.weights_or_none() is not None
        return Leaf(name=name, kind="jagged", keys=tuple(value.keys()), weighted=weighted)
    if isinstance(value, Tensor) and value.dim() in (1, 2):
        width = value.shape[1] if value.dim() == 2 else None
        if value.dtype == torch.float32:
            return Leaf(name=name, kind="dense", width=width)
        if value.dtype == torch.int64:
            return Leaf(name=name, kind="ids", width=width)
    return Leaf(name=name, kind="tensor" if isinstance(value, Tensor) else "other")


class _Stands(nn.Module):
    """Stands for an embedding module: asks it first, and later gives what it is told to."""

    def __init__(self, name: str, module: nn.Module, calls: _Calls):
        super().__init__()
        self.name, self.calls = name, calls
        self._module = [module]  # not a child: its tables are no weights of the dense part

    @property
    def module(self) -> Any:
        return self._module[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.calls.given is not None and name in ("weight", "to_float", "stored"):
                raise CannotExport(
                    f"the model reads the rows of {self.name} themselves, beside looking them up; "
                    "an artifact that stands alone looks rows up and nothing else"
                ) from None
            return getattr(self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.module, TABLES):
            return self._table(*args, **kwargs)
        if isinstance(self.module, EmbeddingCollection):
            return self._sequences(*args)
        return self._pooled(*args)

    def look_up(self, sparse: KeyedJaggedTensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and rows, each with the dense features, as Embedded.of asks for them."""
        widths = tuple(self._widths(sparse))
        if self.calls.given is None:
            found, folded = Embedded.of(self.module, sparse, dense), folds(self.module)
            codes, rows = found.codes, found.values
            outputs = [rows[:, : sum(widths)]]
            if folded:
                outputs.insert(0, codes[:, : codes.shape[1] - dense.shape[1]])
            self.calls.add(self._what("pooled", sparse, widths, folded), outputs)
            return codes, rows
        given = self.calls.next(sparse)
        rows = torch.cat([given[-1], dense], 1)
        return (torch.cat([given[0], dense], 1), rows) if len(given) == 2 else (rows, rows)

    def _widths(self, sparse: KeyedJaggedTensor) -> list[int]:
        return [
            c.embedding_dim for c in self.module.embedding_bag_configs() for _ in c.feature_names
        ]

    def _code_widths(self) -> tuple[int, ...]:
        bags = self.module.embedding_bags
        return tuple(
            bags[c.name].stored.width if getattr(bags[c.name], "folded", False) else c.embedding_dim
            for c in self.module.embedding_bag_configs()
            for _ in c.feature_names
        )

    def _what(
        self, kind: str, sparse: KeyedJaggedTensor, widths: Sequence[int] = (), folded: bool = False
    ) -> LookUp:
        pooled = kind == "pooled"
        configs = self.module.embedding_bag_configs() if pooled else self.module.embedding_configs()
        inside = "embedding_bags" if pooled else "embeddings"
        weighted = sparse.weights_or_none() is not None and (
            not pooled or self.module.is_weighted()
        )
        features = tuple(name for c in configs for name in c.feature_names)
        return LookUp(
            module=self.name,
            kind=kind,
            keys=tuple(sparse.keys()),
            widths=tuple(widths),
            features=features,
            tables=tuple(
                f"{self.name}.{inside}.{c.name}" for c in configs for _ in c.feature_names
            ),
            code_widths=self._code_widths() if folded else (),
            folded=folded,
            weighted=weighted,
            asked=3 if weighted else 2,
            gives=(2 if folded else 1) if pooled else 2 * len(features),
        )

    def _pooled(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        if self.calls.given is None:
            found = self.module(sparse)
            widths = found.length_per_key()
            self.calls.add(self._what("pooled", sparse, widths), [found.values()])
            return found
        (values,) = self.calls.next(sparse)
        names = self.module._embedding_names
        return KeyedTensor(names, self._widths(sparse), values)

    def _sequences(self, sparse: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        if self.calls.given is None:
            found = self.module(sparse)
            what = self._what("sequences", sparse)
            parts = [t for n in found for t in (found[n].values(), found[n].lengths())]
            self.calls.add(what, parts)
            self.calls.names[self.name] = list(found)
            return found
        given = self.calls.next(sparse)
        names = self.calls.names[self.name]
        return {
            name: JaggedTensor(values=given[2 * i], lengths=given[2 * i + 1])
            for i, name in enumerate(names)
        }

    def _table(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        asked = [t for t in (input, offsets, per_sample_weights) if t is not None]
        if self.calls.given is None:
            bag = isinstance(self.module, nn.EmbeddingBag | CompressedBag)
            if not bag:
                found = self.module(input)
            else:
                found = self.module(input, offsets, per_sample_weights=per_sample_weights)
            what = LookUp(
                module=self.name,
                kind="bag" if bag else "rows",
                tables=(self.name,),
                widths=tuple(found.shape[1:]),
                weighted=per_sample_weights is not None,
                asked=len(asked),
            )
            self.calls.add(what, [found])
            return found
        return self.calls.next(asked)[0]


@dataclass
class _Call:
    what: LookUp
    outputs: list[Tensor]


@dataclass
class _Calls:
    """The lookups of one pass through the model, in their order."""

    made: list[_Call] = field(default_factory=list)
    given: Iterator[list[Tensor]] | None = None
    asked: list[Tensor] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    _place: int = 0

    def add(self, what: LookUp, outputs: list[Tensor]) -> None:
        self.made.append(_Call(what, [t.detach().clone() for t in outputs]))

    def next(self, asked: Any) -> list[Tensor]:
        """What the next call gives; `asked` is remembered."""
        assert self.given is not None
        if isinstance(asked, KeyedJaggedTensor):
            weights = asked.weights_or_none()
            asked = [asked.values(), asked.lengths(), *(() if weights is None else (weights,))]
        found = next(self.given, None)
        if found is None:
            raise CannotExport("the model makes other lookups when it is exported than when called")
        self.asked += asked[: self.made[self._place].what.asked]
        self._place += 1
        return found

    def begin(self, given: Sequence[list[Tensor]]) -> None:
        self.given, self.asked, self._place = iter(given), [], 0


@contextmanager
def _taken_apart(model: nn.Module) -> Iterator[_Calls]:
    """The model with a stand-in for each embedding module."""
    if type(model) in (*COLLECTIONS, *TABLES):
        raise CannotExport("the model is an embedding module itself; put it into an nn.Module")
    calls = _Calls()
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def walk(parent: nn.Module, path: str) -> None:
        for name, child in list(parent.named_children()):
            if type(child) in (*COLLECTIONS, *TABLES):
                replaced.append((parent, name, child))
                setattr(parent, name, _Stands(f"{path}{name}", child, calls))
            else:
                walk(child, f"{path}{name}.")

    try:
        walk(model, "")
        yield calls
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


class _Factors(nn.Module):
    """A low-rank layer as two plain ones."""

    def __init__(self, layer: LowRankLinear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.first = nn.Parameter(layer.first.to_float().T.contiguous(), False)
        self.second = nn.Parameter(layer.second.to_float().contiguous(), False)
        self.middle, self.bias = layer.middle, layer.bias
        self.activation = None if layer.activation is None else ACTIVATIONS[layer.activation]

    @property
    def weight(self) -> Tensor:
        return self.second @ self.first

    def forward(self, x: Tensor) -> Tensor:
        codes = nn.functional.linear(x, self.first, self.middle)
        if self.activation is not None:
            codes = self.activation(codes)
        return nn.functional.linear(codes, self.second, self.bias)


@contextmanager
def _plain_linears(model: nn.Module) -> Iterator[None]:
    """The model with decoded weights in its compressed linear layers."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LowRankLinear | CompressedLinear):
                    replaced.append((parent, name, child))
                    setattr(parent, name, plain_linear(child))
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def plain_linear(layer: LowRankLinear | CompressedLinear) -> nn.Module:
    """The layer with decoded weights."""
    if isinstance(layer, LowRankLinear):
        return _Factors(layer)
    plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
    plain.weight = nn.Parameter(layer.stored.to_float(), False)
    plain.register_parameter("bias", layer.bias)
    return plain


class _Dense(nn.Module):
    """The dense part as a function of everything that it reads."""

    def __init__(self, run: Callable[..., tuple[Tensor, list[Tensor]]]):
        super().__init__()
        self.run = run

    def forward(
        self, flat: list[Tensor], given: list[list[Tensor]], weights: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        return self.run(flat, given, weights)


def _exported(
    model: nn.Module, score: Score, inputs: Any, calls: _Calls
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    weights = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
    }
    weights = {name: tensor.detach() for name, tensor in weights.items()}

    def run(
        flat: list[Tensor], given: list[list[Tensor]], held: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        waiting = iter(flat)

        def put_back(name: str, value: Any) -> Any:
            if isinstance(value, KeyedJaggedTensor):
                values, lengths = next(waiting), next(waiting)
                weighted = value.weights_or_none() is not None
                return KeyedJaggedTensor(
                    keys=value.keys(),
                    values=values,
                    lengths=lengths,
                    weights=next(waiting) if weighted else None,
                )
            return next(waiting) if isinstance(value, Tensor) else value

        calls.begin(given)
        rebuilt = with_leaves(inputs, put_back)
        logits = torch.func.functional_call(_Scored(model, score), _inside(held), (rebuilt,))
        return logits.reshape(-1), list(calls.asked)

    flat, given = tensors(inputs), [call.outputs for call in calls.made]
    dynamic = (
        [_batch_first(t) for t in flat],
        [[_batch_first(t) for t in outputs] for outputs in given],
        dict.fromkeys(weights),
    )
    try:
        program = torch.export.export(
            _Dense(run), (flat, given, weights), dynamic_shapes=dynamic, strict=False
        )
    except CannotExport:
        raise
    except Exception as error:
        raise CannotExport(_refusal(error)) from error
    program._example_inputs = None  # they are whole tensors
    for tensor, node in zip(flat, _given_nodes(program), strict=False):
        if tensor.dim() and isinstance(node.meta["val"].shape[0], int):
            raise CannotExport(
                f"the model fixes the number of rows to {node.meta['val'].shape[0]} when it is "
                "exported; look for a size that is read with .shape or len() and kept as a number"
            )
    return program, weights


class _Scored(nn.Module):
    def __init__(self, model: nn.Module, score: Score):
        super().__init__()
        self.model, self._score = model, score

    def forward(self, inputs: Any) -> Tensor:
        return self._score(self.model, inputs)


def _inside(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in weights.items()}


def _batch_first(tensor: Tensor) -> dict[int, Any]:
    return {d: Dim.AUTO if d == 0 else Dim.STATIC for d in range(tensor.dim())}


def _given_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    """The placeholders of what the caller gives."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    return [n for n, s in zip(nodes, specs, strict=True) if s.kind == InputKind.USER_INPUT]


def _refusal(error: Exception) -> str:
    """One sentence on why a model cannot be exported, with the line of the user's code."""
    told = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    at, here = "", __file__.rpartition("/")[0]
    frame = error.__traceback__
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if "site-packages" not in file and here not in file and "<" not in file:
            at = f" at {file}:{frame.tb_lineno}"
        frame = frame.tb_next
    return (
        f"torch.export cannot follow the model{at} ({type(error).__name__}: {told[:300]}); write "
        "that line without a branch or a number that depends on the values"
    )


def _graph(
    program: ExportedProgram,
    described: Sequence[Leaf],
    look_ups: Sequence[LookUp],
    weights: Mapping[str, Tensor],
) -> tuple[Graph | None, str]:
    """The program as the engine's graph, or why not."""
    try:
        return _traced(program, described, look_ups, weights), ""
    except CannotTrace as first:
        try:  # in terms of fewer, simpler operations
            return _traced(program.run_decompositions(), described, look_ups, weights), ""
        except CannotTrace:
            return None, f"the engine has no {first}"


@dataclass(frozen=True)
class _Jagged:
    """A tensor of a jagged input: 0 its values, 1 its lengths, 2 its weights."""

    leaf: int
    part: int


def _traced(
    program: ExportedProgram,
    described: Sequence[Leaf],
    look_ups: Sequence[LookUp],
    weights: Mapping[str, Tensor],
) -> Graph:
    tracer = Tracer(weights)
    given: list[Any] = []
    dense = 0
    for place, leaf in enumerate(described):
        shape = () if leaf.width is None else (leaf.width,)
        if leaf.kind == "jagged":
            given += [_Jagged(place, part) for part in range(3 if leaf.weighted else 2)]
        elif leaf.kind == "dense":
            given.append(tracer.source(shape, op="input", which=dense))
            dense += 1
        elif leaf.kind == "ids":
            given.append(tracer.ids(shape, place))
        elif leaf.kind == "tensor":
            raise CannotTrace(f"use for input{leaf.name}, which is no float32 or int64 [B, width]")
    slots = 0
    for what in look_ups:
        if what.kind == "sequences":
            raise CannotTrace("sequences of rows")
        made, slots = _looked_up(tracer, what, slots)
        given += made
    given += [tracer.weight(name) for name in weights]
    logits, *asked = tracer.run(program.graph, _with_constants(program, given))
    if not isinstance(logits, Rows) or logits.of_a_row.numel() != 1:
        raise CannotTrace("score that does not depend on the inputs")
    out = int(logits.of_a_row)
    features: list[Feature] = []
    waiting = iter(asked)
    for what in look_ups:
        features += _features(what, [next(waiting) for _ in range(what.asked)], described)
    return Graph(features=tuple(features), nodes=pruned(tracer.nodes, out), out=out)


def _with_constants(program: ExportedProgram, given: Sequence[Any]) -> list[Any]:
    """A value for each placeholder: what the caller gives, and tensors that the model made."""
    held = {**program.state_dict, **program.constants}
    waiting = iter(given)
    return [
        next(waiting) if spec.kind == InputKind.USER_INPUT else Fixed(held[str(spec.target)])
        for spec in program.graph_signature.input_specs
    ]


def _looked_up(tracer: Tracer, what: LookUp, slot: int) -> tuple[list[Rows], int]:
    """What a lookup gives as columns: a node a feature."""
    if what.kind == "pooled":
        made = []
        for widths in ([what.code_widths] if what.folded else []) + [what.widths]:
            parts = [
                # codes are narrower where a decoder is folded, and else the rows themselves
                tracer.source(
                    (width,),
                    op="look_up",
                    which=slot + i,
                    form="codes" if width < what.widths[i] else "rows",
                ).columns
                for i, width in enumerate(widths)
            ]
            made.append(Rows(torch.cat(parts, 1)))
        return made, slot + len(what.features)
    *shape, width = what.widths
    bags = 1 if what.kind == "bag" else math.prod(shape)
    parts = [
        tracer.source((width,), op="look_up", which=slot + i, form="rows").columns
        for i in range(bags)
    ]
    return [Rows(torch.cat(parts, 1).reshape(ROWS, *shape, width))], slot + bags


def _features(what: LookUp, asked: Sequence[Any], described: Sequence[Leaf]) -> list[Feature]:
    """Where each feature of a lookup finds its ids."""
    if what.kind == "pooled":
        whole = (
            [_Jagged(asked[0].leaf, part) for part in range(what.asked)]
            if (isinstance(asked[0], _Jagged))
            else None
        )
        if whole != list(asked):
            raise CannotTrace(f"way to work out the ids of {what.module}")
        leaf = asked[0].leaf
        if what.weighted != described[leaf].weighted:
            raise CannotTrace(f"way to leave out the weights of input{described[leaf].name}")
        return [
            Feature(table=table, leaf=leaf, key=key)
            for table, key in zip(what.tables, what.features, strict=True)
        ]
    if len(asked) > 1 or not isinstance(asked[0], Rows):
        raise CannotTrace(f"way to work out the ids of {what.module}")
    columns = [id_column(int(column)) for column in asked[0].of_a_row]
    table = what.tables[0]
    if what.kind == "rows":
        return [Feature(table=table, leaf=leaf, column=at) for leaf, at in columns]
    leaf, at = columns[0]
    if columns != [(leaf, at + i) for i in range(len(columns))]:
        raise CannotTrace(f"way to gather the ids of {what.module}")
    return [Feature(table=table, leaf=leaf, column=at, count=len(columns))]


@dataclass(frozen=True, kw_only=True)
class StandsAlone:
    """All that an artifact has to hold so that its scorer needs none of the model's code."""

    standalone: Standalone
    program: ExportedProgram
    held: dict[str, Tensor]  # every tensor that is served


def stand_alone(
    model: nn.Module,
    score: Score,
    example: Any,
    *,
    user: Sequence[str] = (),
    user_columns: Mapping[int, Sequence[int]] | None = None,
    precision: str = "float32",
) -> StandsAlone:
    """Export a model and describe its tables and layers.

    Raises:
        CannotExport: as for `export`.
    """
    exported = export(model, score, example)
    keys = {key for leaf in exported.leaves for key in leaf.keys}
    unknown = sorted(set(user) - keys)
    if unknown:
        raise CannotExport(
            f"the user's feature {unknown[0]!r} is none of the inputs' {', '.join(sorted(keys))}"
        )
    standalone = Standalone(
        leaves=exported.leaves,
        look_ups=exported.look_ups,
        weights=exported.weights,
        graph=exported.graph,
        reason=exported.reason,
        stored=_stored(model),
        tables=_tables(model, exported.look_ups),
        layers=layouts(model),
        user=tuple(user),
        user_columns={i: tuple(of) for i, of in (user_columns or {}).items()},
        precision=precision,
    )
    made = StandsAlone(standalone=standalone, program=exported.program, held=_held(model, exported))
    _check(made, model, score, example)
    return made


@torch.no_grad()
def _check(made: StandsAlone, model: nn.Module, score: Score, example: Any) -> None:
    """Compare the exported model's logits with the model's, on other numbers of rows.

    Raises:
        CannotExport: they differ.
    """
    from embedcomp.scoring.portable import Portable  # which takes apart what this module makes

    found = [leaf for leaf in leaves(example) if isinstance(leaf[1], Tensor | KeyedJaggedTensor)]
    rows, alone = _batch_rows(found), made.standalone
    portable = Portable(alone, made.program, made.held)
    runs: dict[str, Callable[[Any], Tensor]] = {"torch.export": portable.logits}
    if alone.graph is not None and native.library() is not None:
        arrays = {name: tensor.numpy() for name, tensor in made.held.items()}
        program = lower(alone.graph, alone.tensors(arrays), alone.user, alone.user_columns)
        engine = Engine(alone.graph, program, alone.user)
        runs["the compiled engine"] = lambda inputs: torch.from_numpy(
            engine.score(prepared(inputs, alone.leaves), logits=True)
        )
    was_training = model.training
    model.eval()
    try:
        for size in CHECKED_ROWS:
            inputs = rebatched(example, rows, torch.arange(size - 1, -1, -1) % rows)
            wanted = score(model, inputs).reshape(-1)
            for name, run in runs.items():
                logits = _run(run, inputs, name)
                if not torch.allclose(logits, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                    raise CannotExport(
                        f"what {name} made of the model gives other scores than the model (for "
                        f"example {logits[0]:.6f} instead of {wanted[0]:.6f} on {size} rows); it "
                        "must not depend on values of the example, such as a length or a random "
                        "number, that are no inputs"
                    )
    finally:
        model.train(was_training)


def _run(run: Callable[[Any], Tensor], inputs: Any, name: str) -> Tensor:
    try:
        return run(inputs)
    except Exception as error:
        told = " ".join(str(error).split())
        raise CannotExport(
            f"what {name} made of the model does not run on other rows than the example's "
            f"({type(error).__name__}: {told[:300]}); look for a size that is read with len() "
            "instead of .shape, or a number that is taken out of a tensor"
        ) from error


def stand_alone_from_log(
    model: nn.Module, features: Features, precision: str = "float32"
) -> StandsAlone:
    """The same for a model of (dense, KeyedJaggedTensor) that reads a log's features."""
    dense, sparse = _example(features)
    columns = [i for i, feature in enumerate(features.dense) if feature.side == "user"]
    return stand_alone(
        model,
        _score_pair,
        (dense, sparse),
        user=[feature.name for feature in features.ids if feature.side == "user"],
        user_columns={0: columns} if columns else {},
        precision=precision,
    )


def _score_pair(model: nn.Module, inputs: tuple[Tensor, KeyedJaggedTensor]) -> Tensor:
    return model(*inputs).view(-1)


def _example(features: Features) -> tuple[Tensor, KeyedJaggedTensor]:
    """Two rows of unknown ids."""
    rows, one = 2, np.arange(3)
    bags = tuple(log_rows.Bag(one, np.zeros(2, np.int32)) for _ in features.multi)
    single = np.zeros((rows, len(features.single)), np.int32)
    dense = np.zeros((rows, len(features.dense)), np.float32)
    batch = to_batch(log_rows.Rows(np.zeros(rows, np.float32), dense, single, bags), features.keys)
    return batch.dense, batch.sparse


def _stored(model: nn.Module) -> dict[str, StoredMatrix]:
    return {
        name: StoredMatrix(storage=module.storage, rows=module.rows, width=module.width)
        for name, module in model.named_modules()
        if isinstance(module, StoredRows)
    }


def _tables(model: nn.Module, look_ups: Sequence[LookUp]) -> dict[str, Table]:
    tables = {}
    for name in sorted({table for what in look_ups for table in what.tables}):
        module: Any = model.get_submodule(name)
        compressed, pooling, last = isinstance(module, CompressedTable), "none", True
        if isinstance(module, CompressedBag):
            pooling, last = module.pooling, module.last_offset
        elif isinstance(module, nn.EmbeddingBag):
            pooling, last = module.mode, bool(module.include_last_offset)
        tables[name] = Table(
            rows=module.num_embeddings,
            dim=module.embedding_dim,
            pooling=pooling,
            padding_idx=module.padding_idx,
            last_offset=last,
            stored=compressed,
            decodes=compressed and module.decode is not None,
        )
    return tables


def _held(model: nn.Module, exported: Exported) -> dict[str, Tensor]:
    """The model's state, and buffers that are no part of it but that the program reads."""
    held = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    buffers = dict(model.named_buffers())
    for name in exported.weights:
        if name in buffers and name not in held:
            held[name] = buffers[name]
    for name in {table for what in exported.look_ups for table in what.tables}:
        module: Any = model.get_submodule(name)
        limit = getattr(module, "max_norm", None)
        if limit is not None:  # what a look-up would shrink rows to
            weight = held[f"{name}.weight"]
            held[f"{name}.weight"] = torch.renorm(weight, module.norm_type, 0, limit)
    return held
