"""Products with a weight, in the precision that fits them."""

from __future__ import annotations

import numpy as np

from embedcomp.engine.lowering.state import Lowering, joined
from embedcomp.engine.ops import NOTHING, Linear, Piece
from embedcomp.engine.pack import pack
from embedcomp.kernels import native

FEWEST_BYTES = 64  # inputs and outputs of a layer that multiplies bytes: fewer do not pay


def product(
    low: Lowering,
    pieces: list[Piece],
    weight: np.ndarray,
    bias: np.ndarray | None,
    *,
    times: int = 1,
    init: int = -1,
    counted: Piece = NOTHING,
    relu: bool = False,
    stored_for: str | None = None,
    name: str = "",
) -> int:
    """A linear operation; gives its buffer.

    Args:
        weight: [outputs, inputs].
        init: buffer that the sum begins with, or -1.
        counted: how often a row has the bias; none: once.
        stored_for: the precision of products that the weight is stored for.
        name: of the graph's weight, or of a table's decoder.
    """
    outputs, inputs = weight.shape
    pieces = joined(pieces)
    stage = low.stage(pieces)
    form = native.FORMATS[low.brain]
    if low.bytes and min(inputs, outputs) >= FEWEST_BYTES:
        form = "int8"
    if low.as_stored and stored_for is not None:
        form = max(form, stored_for, key=native.FORMATS.index)
    scratch = times * inputs * ((len(pieces) > 1) + (times > 1))
    if form != "float32":  # bytes are no wider, with a step and a zero a vector
        scratch += times * ((inputs + 1) // 2 + 2)
    op = Linear(
        stage=stage,
        out=low.buffer(times * outputs, stage),
        x=pieces,
        scratch=scratch + 1,
        weight=pack(np.ascontiguousarray(weight, np.float32), form),
        bias=None if bias is None else np.ascontiguousarray(bias, np.float32),
        inputs=inputs,
        outputs=outputs,
        times=times,
        form=form,
        init=init,
        counted=counted,
        relu=relu,
        name=name,
    )
    low.ops.append(op)
    return op.out
