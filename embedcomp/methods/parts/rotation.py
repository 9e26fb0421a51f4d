"""Tables as product-quantized codes in a space of few columns, turned so that codes lose least.

Source: optimized product quantization (Ge et al., CVPR 2013): the rotation and the codewords are
fitted in turns, the rotation by a procrustes problem. Columns are in units of the loss, so that a
squared error of a code is what it costs. The rotation is part of the decoder and takes no bytes
beyond the decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from embedcomp.methods.parts.factors import (
    Weighting,
    fill_table,
    layer_moments,
    output_basis,
)
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.algebra import Basis
from embedcomp.sensitivity.layer import Layer, Served
from embedcomp.storage.kinds.product import Product
from embedcomp.storage.kmeans import refined, seen, words_of

SAMPLED_ROWS = 1 << 12  # that a rotation is fitted to
WORDS = 16  # of a group while it is; more turn it hardly otherwise
TURNS = 16


def fill_rotated(served: Served, layer: Layer, weighting: Weighting) -> None:
    """Codes and decoder of a table whose rows are product-quantized codes of some columns."""
    assert isinstance(served, CompressedTable)
    codes, rank = served.stored.kind, served.stored.width
    assert isinstance(codes, Product)
    turned = layer.shared(_rotated, weighting, *codes.edges(rank))
    fill_table(served, layer, turned, rank, layer_moments(layer)[0], refit=True)


def _rotated(layer: Layer, weighting: Weighting, *edges: int) -> Basis:
    """The first columns of a basis in units of the loss, turned for these groups of columns."""
    found, mean, rank = output_basis(layer, weighting), layer_moments(layer)[0], edges[-1]
    units = found.weights[:rank].sqrt()
    encoder, decoder = found.encoder[:, :rank] * units, found.decoder[:rank] / units[:, None]
    rows, weights = seen(layer.weight, layer.counts, SAMPLED_ROWS)
    turn = rotation((rows.double() - mean) @ encoder, weights, edges)
    even = torch.ones(rank).double()
    return Basis(encoder @ turn, turn.T @ decoder, found.worth[:rank], even)


def rotation(rows: Tensor, weights: Tensor, edges: Sequence[int]) -> Tensor:
    """The orthogonal map [k, k] after which groups of columns are quantized with the least error.

    Args:
        rows: float64 [n, k], whose columns are uncorrelated.
        weights: [n], of the squared errors.
        edges: first column of each group, and k.
    """
    spread = (rows.square() * weights[:, None]).sum(0)
    turn = torch.eye(rows.shape[1]).double()[:, _allocated(spread, edges)]
    if len(edges) <= 2:
        return turn  # one group takes any direction as well as another
    groups = list(pairwise(edges))
    turned = (rows @ turn).float()
    words: list[Tensor] = [words_of(turned[:, a:b], weights, WORDS) for a, b in groups]
    for _ in range(TURNS):
        fitted = [
            refined(turned[:, a:b].contiguous(), weights, group)
            for (a, b), group in zip(groups, words, strict=True)
        ]
        words = [group for group, _ in fitted]
        parts = [group[codes] for group, codes in fitted]
        left, _, right = torch.linalg.svd(rows.T @ (torch.cat(parts, 1) * weights[:, None]))
        turn = left @ right
        turned = (rows @ turn).float()
    return turn


def _allocated(spread: Tensor, edges: Sequence[int]) -> list[int]:
    """Columns in the order of groups of about the same product of spreads.

    The largest goes to the group whose product is the smallest yet (eigenvalue allocation).
    """
    rooms = [b - a for a, b in pairwise(edges)]
    groups: list[list[int]] = [[] for _ in rooms]
    products = [0.0] * len(rooms)  # their logarithms, above that of the smallest spread
    logs = spread.clamp_min(spread.max() * 1e-12 + 1e-300).log()
    above = (logs - logs.min() + 1e-9).tolist()
    for column in torch.argsort(spread, descending=True, stable=True).tolist():
        free = [g for g, room in enumerate(rooms) if len(groups[g]) < room]
        chosen = min(free, key=lambda g: products[g])
        groups[chosen].append(column)
        products[chosen] += above[column]
    return [column for group in groups for column in group]
