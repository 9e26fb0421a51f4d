"""Scores by torch, for models that the engine cannot run.

The exported program is called as torch.export gives it, or as AOTInductor compiled it; lookups are
embedcomp's own modules. None of the model's code is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule

from embedcomp.engine.engine import BadId
from embedcomp.engine.standalone import PROGRAM, Standalone
from embedcomp.errors import BadArtifact
from embedcomp.graph.export import (
    batch_rows,
    made_of,
    rebatched,
    tensors,
)
from embedcomp.graph.graph import LookUp
from embedcomp.scorer import compiled
from embedcomp.scorer.compiled import Compiled
from embedcomp.scorer.layers import Layers


class Portable:
    """A standalone model run by torch.

    Args:
        held: the artifact's tensors.
        machine_code: of the program, if there is any.
    """

    def __init__(
        self,
        standalone: Standalone,
        program: ExportedProgram,
        held: Mapping[str, Tensor],
        machine_code: Compiled | None = None,
    ):
        self._standalone = standalone
        self._layers, self._held = Layers(standalone, held), held
        self._weights = [self._layers.weight(name) for name in standalone.weights]
        weights = dict(zip(standalone.weights, self._weights, strict=True))
        self.resident = self._layers.resident(weights)
        flat = program.module(check_guards=False)
        logits, *asked = flat.graph.find_nodes(op="output")[0].args[0]
        holders = flat.graph.find_nodes(op="placeholder")
        self._gives = sum(what.gives for what in standalone.look_ups)
        first = len(holders) - len(self._weights) - self._gives
        given = holders[first : first + self._gives]
        self._score, self._ids = _giving(flat, [logits]), _giving(flat, asked, unread=given)
        self._places = [holders.index(node) for node in asked if node in holders]
        self._simple = len(self._places) == len(asked)  # ids are the inputs themselves
        self._machine_code = machine_code

    @classmethod
    def open(
        cls,
        standalone: Standalone,
        folder: Path,
        held: Mapping[str, Tensor],
        *,
        in_full: bool = True,
    ) -> Portable:
        """Load the program of an artifact.

        Args:
            in_full: no layer is cut; machine code is of weights of the shapes that are stored.

        Raises:
            BadArtifact: it is not an exported program.
        """
        try:
            program = torch.export.load(folder / PROGRAM)
        except Exception as error:
            raise BadArtifact(f"{folder / PROGRAM} is not an exported program: {error}") from error
        return cls(standalone, program, held, compiled.load(folder) if in_full else None)

    @torch.inference_mode()
    def logits(self, inputs: Any) -> Tensor:
        """Logits [B] of inputs of the same structure as the example's.

        Raises:
            BadId: an id is out of its table's range.
        """
        least = self._standalone.least_rows
        if least > 1 and batch_rows(inputs) == 1:
            repeated = rebatched(inputs, 1, torch.zeros(least, dtype=torch.int64))
            return self.logits(repeated)[:1]
        flat = tensors(inputs)
        given = self._given(flat)
        if self._machine_code is not None and _rows(given) > 1:  # it was made for two rows or more
            logits: Tensor = self._machine_code(*self._arguments(flat, given))[0]
            return logits.reshape(-1)
        (scored,) = self._score(*flat, *given, *self._weights)
        return scored.reshape(-1)

    @torch.no_grad()
    def arguments(self, inputs: Any) -> tuple[list[Tensor], list[list[Tensor]], dict[str, Tensor]]:
        """What the program is called with for these inputs."""
        flat = tensors(inputs)
        return self._arguments(flat, self._given(flat))

    def _arguments(
        self, flat: Sequence[Tensor], given: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[list[Tensor]], dict[str, Tensor]]:
        waiting = iter(given)
        nested = [[next(waiting) for _ in range(w.gives)] for w in self._standalone.look_ups]
        return list(flat), nested, dict(zip(self._standalone.weights, self._weights, strict=True))

    def _given(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """What the lookups give."""
        asked = iter(self._asked(flat))
        given: list[Tensor] = []
        for what in self._standalone.look_ups:
            given += self._look_up(what, [next(asked) for _ in range(what.asked)])
        return given

    @property
    def compiled(self) -> bool:
        """Whether machine code runs the program."""
        return self._machine_code is not None

    def _asked(self, flat: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors of ids that the lookups take, in their order."""
        if self._simple:
            return [flat[place] for place in self._places]
        found: Sequence[Tensor] = self._ids(*flat, *[None] * self._gives, *self._weights)
        return found

    def _look_up(self, what: LookUp, asked: Sequence[Tensor]) -> list[Tensor]:
        if what.kind == "rows":
            return [self._rows(what.tables[0], what.module, asked[0])]
        if what.kind == "bag":
            last = self._standalone.tables[what.tables[0]].last_offset
            self._check(what.tables[0], what.module, asked[0])
            offsets = asked[1] if len(asked) > 1 and asked[0].dim() == 1 else None
            weights = asked[-1] if what.weighted else None
            return [self._bag(what.tables[0], last, asked[0], offsets, weights)]
        values, lengths = asked[0], asked[1].view(len(what.keys), -1)
        ends = lengths.sum(1).cumsum(0)
        given: list[Tensor] = []
        pooled: list[tuple[Tensor, Tensor]] = []
        for table, feature in zip(what.tables, what.features, strict=True):
            place = what.keys.index(feature)
            first = int(ends[place - 1]) if place else 0
            ids, own = values[first : int(ends[place])], lengths[place]
            if what.kind == "sequences":
                given += [self._rows(table, feature, ids), own]
                continue
            weights = asked[2][first : int(ends[place])] if what.weighted else None
            self._check(table, feature, ids)
            offsets = torch.cat([own.new_zeros(1), own.cumsum(0)])
            pooled.append(self._pooled(table, ids, offsets, weights, what.folded))
        if pooled:
            codes = [torch.cat([p[0] for p in pooled], 1)] if what.folded else []
            given = [*codes, torch.cat([p[1] for p in pooled], 1)]
        return given

    def _pooled(
        self, name: str, ids: Tensor, offsets: Tensor, weights: Tensor | None, folded: bool
    ) -> tuple[Tensor, Tensor]:
        """A bag's codes, where decoders are folded, and its rows."""
        layer = self._layers.of(name)
        if folded and layer is not None and layer.folded:
            codes, constant = layer.codes(ids, offsets, weights)
            return codes, layer.decoded(codes, constant)
        rows = self._bag(name, True, ids, offsets, weights)
        return rows, rows

    def _bag(
        self, name: str, last: bool, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        layer, table = self._layers.of(name), self._standalone.tables[name]
        if layer is not None:
            return layer(ids, offsets, per_sample_weights=weights)
        return nn.functional.embedding_bag(
            ids,
            self._held[f"{name}.weight"],
            offsets,
            mode=table.pooling,
            per_sample_weights=weights,
            include_last_offset=last and offsets is not None,
            padding_idx=table.padding_idx,
        )

    def _rows(self, name: str, feature: str, ids: Tensor) -> Tensor:
        self._check(name, feature, ids)
        layer, table = self._layers.of(name), self._standalone.tables[name]
        if layer is not None:
            return layer(ids)
        return nn.functional.embedding(ids, self._held[f"{name}.weight"], table.padding_idx)

    def _check(self, name: str, feature: str, ids: Tensor) -> None:
        rows = self._standalone.tables[name].rows
        bad = ids[(ids < 0) | (ids >= rows)]
        if len(bad):
            raise BadId(feature, int(bad[0]), rows)


def _giving(
    flat: GraphModule, nodes: Sequence[torch.fx.Node], unread: Collection[torch.fx.Node] = ()
) -> GraphModule:
    """The program with other outputs, its arguments one after another.

    Args:
        unread: arguments that none of the outputs depends on. torch keeps what works in place,
            such as a ReLU, for whoever reads the old value; here nobody reads what is made of them.
    """
    graph = Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.graph_copy(flat.graph, copied)
    graph.output(tuple(copied[node] for node in nodes))
    module = GraphModule(flat, graph)
    held = {copied[node] for node in unread}
    later = made_of(held) - held
    module.graph.eliminate_dead_code(lambda node: node.is_impure() and node not in later)
    module.recompile()
    return module


def _rows(given: Sequence[Tensor]) -> int:
    """Rows of the smallest of the lookups' outputs, of which some have one a row of the batch."""
    return min((len(tensor) for tensor in given), default=0)
