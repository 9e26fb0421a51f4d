"""From a Graph to the engine's program: buffers, weights packed as the engine reads them, stages.

What is decided here: decoders are multiplied into the linear layers that read them, activations
into the layer before; a layer that reads the user's columns and the candidates' becomes two, of
which the first is computed once for all candidates. Both ways of scoring run the same operations in
the same order, so their scores are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from embedcomp.engine.lowering.dots import dots
from embedcomp.engine.lowering.linear import linear
from embedcomp.engine.lowering.numbers import binary, function, input, sum_, unary, weight
from embedcomp.engine.lowering.state import ITEM, USER, Lowering, overlaps
from embedcomp.engine.lowering.tables import look_up, pieces
from embedcomp.engine.ops import LookUp
from embedcomp.engine.program import Program
from embedcomp.engine.tensors import Tensors
from embedcomp.graph.graph import Graph, Node

BY_OPERATION: Mapping[str, Callable[[Lowering, Node], None]] = {
    "input": input,
    "look_up": look_up,
    "weight": weight,
    "linear": linear,
    "dots": dots,
    "unary": unary,
    "binary": binary,
    "sum": sum_,
}


def lower(
    graph: Graph,
    tensors: Tensors,
    user: Collection[str] = (),
    user_columns: Mapping[int, Collection[int]] | None = None,
    *,
    precision: str = "float32",
    as_stored: bool = True,
    outside: Mapping[int, int] | None = None,
) -> Program:
    """The program of a graph.

    Args:
        user: names of the features that are the same for all candidates of a request.
        user_columns: the same of dense inputs: by input, columns.
        precision: of products: "float32"; "bfloat16", summed in float32; or "int8", in which large
            linear layers multiply bytes (a step a weight's output, and a step and a zero a
            row), and the rest is in bfloat16.
        as_stored: layers that are stored as bfloat16 or symmetric_int8 multiply in that precision
            where it is lower than the given one.
        outside: features, by number, whose rows are not looked up here: the dense input that has
            the pooled rows of each, and how many ids they are of, float32 [B, width + 1].
    """
    fused = _activations(graph)
    low = Lowering(
        graph=graph,
        tensors=tensors,
        user=set(user),
        user_columns=user_columns or {},
        brain=precision != "float32",
        bytes=precision == "int8",
        as_stored=as_stored,
        rectified={layer.at for layer in fused.values()},
        outside=outside or {},
    )
    for node in graph.nodes:
        if node.at in fused:  # an activation that its layer has already
            low.place(node.at, node.width, low.source(fused[node.at].at).buffer)
        else:
            BY_OPERATION[node.op](low, node)
    out = _score(low)
    low.settle()
    # lookups first, so that the next block's rows can be brought near meanwhile
    low.ops.sort(key=lambda op: not isinstance(op, LookUp))
    return Program(low.buffers, low.ops, out, low.tables)


def _score(low: Lowering) -> int:
    """The buffer of the logits: one number of a row's own."""
    ((out, at, _),) = pieces(low, ((low.graph.out, 1),))
    if at or low.buffers[out].width != 1:
        out = function(low, [(out, at, 1)], "copy").out
    if low.buffers[out].stage == USER:  # no candidate matters
        out = function(low, [(out, 0, 1)], "copy", stage=ITEM).out
    return out


def _activations(graph: Graph) -> dict[int, Node]:
    """Layers with a ReLU that nothing but it reads, by the first column of the ReLU."""
    layers = {node.at: node for node in graph.nodes if node.op == "linear"}
    found = {}
    for node in graph.nodes:
        if node.op == "unary" and node.name == "relu" and len(node.x) == 1:
            layer = layers.get(node.x[0][0])
            if layer is not None and node.x[0] == (layer.at, layer.width):
                readers = [n for n in graph.nodes if overlaps(n, layer)]
                is_score = layer.at <= graph.out < layer.at + layer.width
                if readers == [node] and not is_score:
                    found[node.at] = layer
    return found
