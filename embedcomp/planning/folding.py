"""What folding decoders does to the layer that reads them: its weight, and its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from embedcomp.methods.parts.factors import fit_affine
from embedcomp.modules.embedded import (
    Decoder,
    Reader,
    can_fold,
    fold_weight,
)
from embedcomp.modules.table import CompressedBag
from embedcomp.sensitivity.layer import Layer, LinearSpec, LinearStatistics
from embedcomp.sensitivity.sketch import Sketched


class Codes(NamedTuple):
    """A table's codes, and the map from its rows to them."""

    encoder: Tensor  # float64 [d, k]
    shift: Tensor  # float64 [k]
    decoder: Decoder


def codes_of(layer: Layer, bag: CompressedBag) -> Codes:
    """The codes of a compressed table; the encoder is fitted, so any method's will do."""
    assert bag.decode is not None
    encoder, shift = fit_affine(layer.weight, bag.codes_of_rows(), layer.counts)
    return Codes(encoder, shift, Decoder(bag.decode.matrix(), bag.decode.shift().detach()))


def folded(
    reader: Reader, tables: Mapping[str, tuple[Layer, nn.Module]], single_valued: set[str]
) -> dict[str, Codes]:
    """The codes of those tables whose decoders the reader takes in.

    Args:
        tables: that are compressed, as they were and as they are.
    """
    found = {}
    for block in reader.blocks:
        before, after = tables.get(block.table, (None, None))
        if before is None or not isinstance(after, CompressedBag):
            continue
        if can_fold(block, after, single_valued):
            found[block.table] = codes_of(before, after)
    return found


def narrowed(layer: Layer, reader: Reader, tables: Mapping[str, Codes]) -> Layer:
    """The reader's layer as it is once the decoders of these tables are folded into it."""
    parts = [tables.get(block.table, block.dim) for block in reader.blocks]
    return _moved(layer, parts) if tables else layer


def _moved(layer: Layer, parts: Sequence[Codes | int]) -> Layer:
    assert isinstance(layer.spec, LinearSpec)
    decoders = [part if isinstance(part, int) else part.decoder for part in parts]
    weight, bias = fold_weight(layer.weight, layer.bias, decoders)
    spec = replace(layer.spec, inputs=weight.shape[1], bias=True)
    return Layer(spec, weight, bias, _encoded(layer.inputs, parts), drawn=layer.drawn)


def _encoded(inputs: LinearStatistics, parts: Sequence[Codes | int]) -> LinearStatistics:
    """Statistics of the codes; they are as long as what they encode, so the spread stays."""
    dense = len(inputs.mean) - sum(_width(part) for part in parts)
    shifts = [torch.zeros(p).double() if isinstance(p, int) else p.shift for p in (*parts, dense)]
    moved, shift = _along(inputs.mean[:, None], parts)[:, 0], torch.cat(shifts)
    mean = moved + shift
    if isinstance(inputs.second, Sketched):
        along = _along(inputs.second.root, parts)
        rest = _along(inputs.second.rest[:, None], parts, squared=True)[:, 0]
        return replace(inputs, mean=mean, second=Sketched(mean, along, rest))
    cross = moved.outer(shift)
    second = _along(_along(inputs.second, parts).T, parts)
    return replace(inputs, mean=mean, second=second + cross + cross.T + shift.outer(shift))


def _along(values: Tensor, parts: Sequence[Codes | int], *, squared: bool = False) -> Tensor:
    """Values [inputs, n] through the encoders, a block at a time: [new inputs, n].

    Args:
        squared: through the squares of the encoders' numbers, as variances go.
    """
    moved, start = [], 0
    for part in parts:
        block = values[start : start + _width(part)]
        start += len(block)
        if not isinstance(part, int):
            encoder = part.encoder.square() if squared else part.encoder
            block = encoder.T @ block
        moved.append(block)
    return torch.cat([*moved, values[start:]])  # and the dense features


def _width(part: Codes | int) -> int:
    """Inputs that it stands for."""
    return part if isinstance(part, int) else len(part.encoder)
