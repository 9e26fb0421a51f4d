"""Low rank by what a layer puts out, not by its weight (output-feature mimicking, AFM).

Source: arXiv 2405.18146. Features are of low rank even where weights are not: the mean and
covariance of a layer's output over the log give the affine map of rank k with the smallest expected
squared error, which is the sum of the eigenvalues left out. For a table the output is the rows that
are looked up, so counts are all it takes. With measured gradients the error is weighed by what it
costs in the loss, E[e^T G e]. Factors stored in few bits are followed by a refit of the second
factor to what is left of the first; so is an activation between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from embedcomp.errors import BadSettings
from embedcomp.methods.parts import build
from embedcomp.methods.parts.factors import (
    Weighting,
    centre_linear,
    fill_linear,
    fit_activated,
    mimic_table,
    output_basis,
)
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
)
from embedcomp.storage.names import FactorStorage


@dataclass(frozen=True, kw_only=True)
class Settings:
    rank: int  # numbers a row or an output is described by; 0 makes every row the mean row
    storage: FactorStorage = "float32"
    weighting: Weighting = "loss"  # "loss" without gradients is "output"
    activation: bool = False  # the one that follows a linear layer also between its factors:
    # as published, not exact, so only worth it when tuned afterwards, and only then a candidate


def candidates(spec: Spec) -> list[Settings]:
    storages = build.FACTOR_STORAGES
    only_bias = storages[:2] if isinstance(spec, LinearSpec) else storages[:1]
    found = [
        Settings(rank=k, storage=storage)
        for k in build.ranks(spec)
        for storage in (storages if k else only_bias)
    ]
    if isinstance(spec, LinearSpec) and spec.tuned and spec.activation is not None:
        found += [replace(settings, activation=True) for settings in found if settings.rank]
    return found


def empty(spec: Spec, settings: Settings) -> Served:
    activation = _activation(spec) if settings.activation else None
    rank, storage = settings.rank, settings.storage
    return build.low_rank(spec, rank, storage, activation=activation)


def compress(layer: Layer, settings: Settings) -> Served:
    served, rank = empty(layer.spec, settings), settings.rank
    if not isinstance(layer.spec, LinearSpec):
        mimic_table(served, layer, rank, settings.weighting)
        return served
    found = output_basis(layer, settings.weighting)
    refit = settings.storage.startswith("column") and not settings.activation
    fill_linear(served, layer, found, rank, refit=refit)
    if settings.activation:
        fit_activated(served, layer, found.encoder[:, :rank])
    else:
        centre_linear(served, layer)
    return served


def _activation(spec: Spec) -> str:
    if not isinstance(spec, LinearSpec) or spec.activation is None:
        raise BadSettings(
            f"{spec.name} has no known activation after it to put between its factors; "
            "set activation to false"
        )
    return spec.activation
