"""From an exported program, with its inputs and lookups, to the engine's graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from embedcomp.graph.graph import (
    Feature,
    Graph,
    Leaf,
    LookUp,
)
from embedcomp.graph.trace import (
    ROWS,
    WHOLE,
    CannotTrace,
    Fixed,
    PerRow,
    Tracer,
    id_column,
    operation_name,
    pruned,
)


def as_graph(
    program: ExportedProgram,
    described: Sequence[Leaf],
    look_ups: Sequence[LookUp],
    weights: Mapping[str, Tensor],
) -> tuple[Graph | None, str]:
    """The program as the engine's graph, or why not."""
    try:
        return _traced(program, described, look_ups, weights), ""
    except CannotTrace as first:
        try:
            return _traced(_simpler(program), described, look_ups, weights), ""
        except CannotTrace as second:
            in_place = str(first).split()[0].endswith("_")  # of which nothing is left
            return None, f"the engine has no {second if in_place else first}"


def _simpler(program: ExportedProgram) -> ExportedProgram:
    """The program in fewer, simpler operations, of which none works in place.

    What the engine has stays whole: logit would become a choice between numbers, and a matrix that
    multiplies every row one matrix a row.
    """
    table = torch.export.default_decompositions()
    for operation in [known for known in table if operation_name(known) in WHOLE]:
        del table[operation]
    return program.run_decompositions(table)


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
        outputs, slots = _looked_up(tracer, what, slots)
        given += outputs
    given += [tracer.weight(name) for name in weights]
    logits, *asked = tracer.run(program.graph, _with_constants(program, given))
    if not isinstance(logits, PerRow) or logits.of_a_row.numel() != 1:
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


def _looked_up(tracer: Tracer, what: LookUp, slot: int) -> tuple[list[PerRow], int]:
    """What a lookup gives as columns: a node a feature."""
    if what.kind == "pooled":
        outputs = []
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
            outputs.append(PerRow(torch.cat(parts, 1)))
        return outputs, slot + len(what.features)
    *shape, width = what.widths
    bags = 1 if what.kind == "bag" else math.prod(shape)
    parts = [
        tracer.source((width,), op="look_up", which=slot + i, form="rows").columns
        for i in range(bags)
    ]
    return [PerRow(torch.cat(parts, 1).reshape(ROWS, *shape, width))], slot + bags


def _features(what: LookUp, asked: Sequence[Any], described: Sequence[Leaf]) -> list[Feature]:
    """Where each feature of a lookup finds its ids."""
    if what.kind == "pooled":
        expected = (
            [_Jagged(asked[0].leaf, part) for part in range(what.asked)]
            if (isinstance(asked[0], _Jagged))
            else None
        )
        if expected != list(asked):
            raise CannotTrace(f"way to work out the ids of {what.module}")
        leaf = asked[0].leaf
        if what.weighted != described[leaf].weighted:
            raise CannotTrace(f"way to leave out the weights of input{described[leaf].name}")
        return [
            Feature(table=table, leaf=leaf, key=key)
            for table, key in zip(what.tables, what.features, strict=True)
        ]
    if len(asked) > 1 or not isinstance(asked[0], PerRow):
        raise CannotTrace(f"way to work out the ids of {what.module}")
    columns = [id_column(int(column)) for column in asked[0].of_a_row]
    table = what.tables[0]
    if what.kind == "rows":
        return [
            Feature(table=table, leaf=leaf, column=at, input=described[leaf].name)
            for leaf, at in columns
        ]
    leaf, at = columns[0]
    if columns != [(leaf, at + i) for i in range(len(columns))]:
        raise CannotTrace(f"way to gather the ids of {what.module}")
    name = described[leaf].name
    return [Feature(table=table, leaf=leaf, column=at, count=len(columns), input=name)]
