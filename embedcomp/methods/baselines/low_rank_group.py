"""Low rank with one decoder for several tables: fields of one width, each with codes of its own.

Source: arXiv 2405.18146, as low_rank; here the covariance is that of the looked-up rows of all the
tables, each around its own mean, so the decoder's rows are in order of what they are worth to them
together and a table of rank k uses the first k. Given these rows, its codes are the best by its own
gradients. A table by itself makes do with fewer rows, so this pays where fields lie in one space.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import (
    Weighting,
    encoded,
    layer_moments,
    pooled_basis,
)
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.algebra import DAMPING, moments, solve
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    SharesDecoder,
    Spec,
    TableSpec,
)
from embedcomp.storage.decode import Affine
from embedcomp.storage.names import FactorStorage
from embedcomp.storage.rows import StoredRows


@dataclass(frozen=True, kw_only=True)
class Settings(SharesDecoder):
    storage: FactorStorage = "float16"  # of the codes
    weighting: Weighting = "loss"  # "loss" without gradients is "output"

    @property
    def decoder(self) -> Hashable:
        return self.most, build.of_decoder(self.storage), self.weighting


def candidates(spec: Spec) -> list[Settings]:
    if not isinstance(spec, TableSpec):
        return []
    return [
        Settings(rank=k, most=spec.dim, storage=storage)
        for k in build.ranks(spec)
        if k
        for storage in build.FEW_STORAGES
    ]


def empty(spec: Spec, settings: Settings) -> Served:
    rank, most = settings.rank, settings.most
    assert isinstance(spec, TableSpec)
    if not 1 <= rank <= most <= spec.dim:
        raise BadSettings(
            f"{spec.name} has {spec.dim} columns, so it can use from 1 to {spec.dim} rows of a "
            f"decoder with as many or more, up to {spec.dim}, and not {rank} of {most}"
        )
    stored = StoredRows(spec.rows, rank, settings.storage)
    decode = Affine(rank, spec.dim, build.of_decoder(settings.storage), True, most=most)
    return build.table(spec, stored, decode)


def compress(layer: Layer, settings: Settings) -> Served:
    served = empty(layer.spec, settings)
    assert isinstance(served, CompressedTable) and isinstance(served.decode, Affine)
    shared = pooled_basis(layer.group or (layer,), settings.weighting)
    served.decode.stored.fill(shared.decoder[: settings.most])
    mean, _ = layer_moments(layer)
    decoder = served.decode.matrix().double()  # [k, dim], as it is stored
    metric = _metric(layer, settings)
    costs = decoder @ metric @ decoder.T  # [k, k], of errors of the codes
    encoder = solve(costs, decoder @ metric).T  # [dim, k]
    served.fill(encoded(layer.weight, encoder, mean), layer.counts, costs.diagonal())
    moved, _ = moments(served.stored.to_float(), layer.counts)  # by rounding, from 0
    served.decode.set_bias(mean - moved @ decoder)
    return served


def _metric(layer: Layer, settings: Settings) -> Tensor:
    """What errors of the table's rows cost, float64 [dim, dim]; damped, as a basis' is."""
    eye = torch.eye(layer.weight.shape[1], dtype=torch.float64)
    if layer.gradient is None or settings.weighting == "output":
        return eye
    return (1 - DAMPING) * layer.gradient + DAMPING * layer.gradient.diagonal().mean() * eye
