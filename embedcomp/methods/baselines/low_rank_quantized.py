"""Low rank plus a rounded rest, fitted to each other by turns (LQ, from LQ-LoRA).

Source: arXiv 2311.12023. Q = rounded(W - L) and L = the best product of low rank for W - Q take
turns until the error in the metric of the loss rises. In a table both are columns of one stored
row: k codes, then what is left of each column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import layer_moments, metric_roots, output_basis
from embedcomp.modules.linear import CorrectedLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.algebra import leading_few
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
)
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.sensitivity.sketch import Root, root_of
from embedcomp.storage.decode import Affine

TURNS = 4
RANKS = (1, 2, 4, 8, 16)

Rounded = Literal["row_int4", "row_int2", "column_int4", "column_mixed3", "column_mixed2"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int
    storage: Rounded  # of the rest


def candidates(spec: Spec) -> list[Settings]:
    is_linear = isinstance(spec, LinearSpec)
    most = (min(spec.inputs, spec.outputs) if isinstance(spec, LinearSpec) else spec.dim) // 4
    linear: tuple[Rounded, ...] = ("row_int4", "row_int2", "column_mixed3", "column_mixed2")
    table: tuple[Rounded, ...] = ("column_int4", "column_mixed3", "column_mixed2")
    ranks = [k for k in RANKS if k <= most]
    return [Settings(rank=k, storage=s) for s in (linear if is_linear else table) for k in ranks]


def empty(spec: Spec, settings: Settings) -> Served:
    if isinstance(spec, LinearSpec):
        return build.corrected(spec, settings.rank, settings.storage)
    return build.low_rank_and_rest(spec, settings.rank, settings.storage)


def compress(layer: Layer, settings: Settings) -> Served:
    if isinstance(layer.spec, LinearSpec):
        return _linear(layer, settings)
    return _table(layer, settings)


def _root_of_error_moment(layer: Layer) -> Root:
    return root_of(layer.error_moment)


def _linear(layer: Layer, settings: Settings) -> Served:
    weight, rank = layer.weight.double(), settings.rank
    metric = metric_roots(layer, "loss")
    moment, spread = layer.error_moment, layer.shared(_root_of_error_moment)
    best, least, rest = empty(layer.spec, settings), float("inf"), torch.zeros_like(weight)
    for _ in range(TURNS):
        served = empty(layer.spec, settings)
        assert isinstance(served, CorrectedLinear)
        missing = weight - rest
        encoder, decoder = leading_few(spread.seen_by(missing), metric, rank)
        served.first.fill((missing.T @ encoder).float())
        served.second.fill(decoder.T.float())
        product = served.second.to_float() @ served.first.to_float().T
        served.stored.fill(layer.weight - product, layer.output_weights, moment.diagonal())
        build.keep_mean(served, layer)
        rest = served.stored.to_float().double()
        loss = predicted_loss(layer, served)
        if loss >= least:
            break
        best, least = served, loss
    return best


def _table(layer: Layer, settings: Settings) -> Served:
    mean, rank = layer_moments(layer)[0], settings.rank
    centred, counts = layer.weight - mean.float(), layer.counts
    found = output_basis(layer, "loss")
    encoder, decoder = found.encoder[:, :rank].float(), found.decoder[:rank].float()
    columns = torch.ones(centred.shape[1]) if layer.gradient is None else layer.gradient.diagonal()
    weights = torch.cat([found.weights[:rank], columns.double()])
    best, least, rest = empty(layer.spec, settings), float("inf"), torch.zeros_like(centred)
    for _ in range(TURNS):
        served = empty(layer.spec, settings)
        assert isinstance(served, CompressedTable) and isinstance(served.decode, Affine)
        codes = (centred - rest) @ encoder
        served.decode.fill(decoder, mean)
        both = torch.cat([codes, centred - codes @ decoder], 1)
        served.fill(both, counts, weights)
        rest = served.stored.to_float()[:, rank:]
        loss = predicted_loss(layer, served)
        if loss >= least:
            break
        best, least = served, loss
    return best
