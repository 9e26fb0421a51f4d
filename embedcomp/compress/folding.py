"""What folding decoders does to the layer that reads them: its weight, and its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from embedcomp.compress.contract import Layer, LinearSpec, LinearStatistics
from embedcomp.compress.factors import fit_affine
from embedcomp.served.embedded import Decoder, Reader, can_fold, fold_weight
from embedcomp.served.table import CompressedBag


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


def narrowed(
    layer: Layer,
    reader: Reader,
    tables: Mapping[str, tuple[Layer, nn.Module]],
    single_valued: set[str],
) -> Layer:
    """The reader's layer as it is once the decoders of `tables` are folded into it.

    Args:
        tables: the reader's tables that are compressed, as they were and as they are.
    """
    parts: list[Codes | int] = []
    for block in reader.blocks:
        before, after = tables.get(block.table, (None, None))
        if before is not None and isinstance(after, CompressedBag):
            foldable = can_fold(block, after, single_valued)
            parts.append(codes_of(before, after) if foldable else block.dim)
        else:
            parts.append(block.dim)
    return layer if all(isinstance(part, int) for part in parts) else _moved(layer, parts)


def _moved(layer: Layer, parts: Sequence[Codes | int]) -> Layer:
    assert isinstance(layer.spec, LinearSpec)
    decoders = [part if isinstance(part, int) else part.decoder for part in parts]
    weight, bias = fold_weight(layer.weight, layer.bias, decoders)
    spec = replace(layer.spec, inputs=weight.shape[1], bias=True)
    encoder, shift = _encoder(parts, layer.spec.inputs)
    return Layer(spec, weight, bias, _encoded(layer.inputs, encoder, shift))


def _encoder(parts: Sequence[Codes | int], inputs: int) -> tuple[Tensor, Tensor]:
    """The map from all the reader's inputs to its new ones: [inputs, new] and [new]."""
    matrices, shifts = [], []
    for part in parts:
        matrix, shift = _unchanged(part) if isinstance(part, int) else part[:2]
        matrices.append(matrix)
        shifts.append(shift)
    matrix, shift = _unchanged(inputs - sum(len(matrix) for matrix in matrices))  # dense features
    encoder = torch.block_diag(*matrices, matrix)
    return encoder, torch.cat([*shifts, shift])


def _unchanged(width: int) -> tuple[Tensor, Tensor]:
    return torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)


def _encoded(inputs: LinearStatistics, encoder: Tensor, shift: Tensor) -> LinearStatistics:
    moved = inputs.mean @ encoder
    cross = moved.outer(shift)
    second = encoder.T @ inputs.second @ encoder + cross + cross.T + shift.outer(shift)
    # codes are as long as what they encode, so the spread stays about the same
    return replace(inputs, mean=moved + shift, second=second)
