"""A model's dense part as a program that needs none of the model's code.

Every embedding lookup is taken out: what it gives becomes an input of the program, and the ids that
it was asked for become an output. torch.export makes the program; where the engine has all its
operations, `trace` makes a Graph of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.graph.from_program import as_graph
from embedcomp.graph.graph import Graph, Leaf, LookUp
from embedcomp.graph.inputs import leaves, with_leaves
from embedcomp.graph.lookups import (
    Calls,
    CannotExport,
    plain_linears,
    taken_apart,
)

Score = Callable[[nn.Module, Any], Tensor]
SIZES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43)  # of batches, of which some are no other dimension


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
    rows = batch_rows(example)
    size = _unlike(model, example)
    given = rebatched(example, rows, torch.arange(size) % rows)
    described = tuple(_leaf(name, value) for name, value in leaves(given))
    was_training = model.training
    model.eval()
    try:
        with plain_linears(model), taken_apart(model) as calls:
            wanted = score(model, given).reshape(-1)
            if wanted.shape != (size,):
                raise CannotExport(
                    f"score gave {tuple(wanted.shape)} logits for {size} rows; it must give [B]"
                )
            program, weights = _exported(model, score, given, calls)
    finally:
        model.train(was_training)
    look_ups = tuple(call.what for call in calls.made)
    graph, reason = as_graph(program, described, look_ups, weights)
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


def batch_rows(example: Any) -> int:
    """Rows of a model's inputs.

    Raises:
        CannotExport: they have none, or not all the same number.
    """
    sizes = {}
    for name, value in leaves(example):
        if isinstance(value, KeyedJaggedTensor):
            sizes[name] = value.stride()
        elif isinstance(value, Tensor) and value.dim():
            sizes[name] = len(value)
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


def _unlike(model: nn.Module, example: Any) -> int:
    """A number of rows that is no other dimension, which export would take for the same."""
    taken = {n for p in model.parameters() for n in p.shape}
    for _, value in leaves(example):
        if isinstance(value, Tensor):
            taken |= set(value.shape[1:])
        elif isinstance(value, KeyedJaggedTensor):
            taken.add(len(value.keys()))
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
    model: nn.Module, score: Score, inputs: Any, calls: Calls
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    weights = _weights(model)

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
        scored = _Scored(model, score)
        logits = torch.func.functional_call(scored, _inside(held), (rebuilt,), tie_weights=False)
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


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of every module, under the first of its names.

    Under two names, torch would replace a tensor twice and put back what it replaced it with.
    """
    return {
        f"{name}.{own}".lstrip("."): tensor.detach()
        for name, module in model.named_modules()
        for own, tensor in (module._parameters | module._buffers).items()
        if tensor is not None
    }


def _inside(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in weights.items()}


def _batch_first(tensor: Tensor) -> dict[int, Any]:
    return {d: Dim.AUTO if d == 0 else Dim.STATIC for d in range(tensor.dim())}


def _given_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    """The placeholders of the caller's inputs."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    return [n for n, s in zip(nodes, specs, strict=True) if s.kind == InputKind.USER_INPUT]


def made_of(nodes: Iterable[torch.fx.Node]) -> set[torch.fx.Node]:
    """These values of a program, and all that are computed from them."""
    found: set[torch.fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.users
    return found


def _refusal(error: Exception) -> str:
    """One sentence on why a model cannot be exported, with the line of the user's code."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    at, here = "", __file__.rpartition("/")[0]
    frame = error.__traceback__
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if "site-packages" not in file and here not in file and "<" not in file:
            at = f" at {file}:{frame.tb_lineno}"
        frame = frame.tb_next
    return (
        f"torch.export cannot follow the model{at} ({type(error).__name__}: {reason[:300]}); write "
        "that line without a branch or a number that depends on the values"
    )
