"""From a layer to the served modules that methods choose among."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from embedcomp.compress.contract import Layer, LinearSpec, Served, Spec, TableSpec
from embedcomp.errors import BadSettings
from embedcomp.served.decode import Affine, Decoder
from embedcomp.served.formats import ColumnStorage, FactorStorage, Storage
from embedcomp.served.index import Index
from embedcomp.served.linear import CompressedLinear, CorrectedLinear, LowRankLinear, ServedLinear
from embedcomp.served.rows import StoredRows
from embedcomp.served.table import CompressedBag, CompressedEmbedding, CompressedTable

COLUMN_STORAGES: tuple[ColumnStorage, ...] = get_args(ColumnStorage)
FACTOR_STORAGES: tuple[FactorStorage, ...] = tuple(
    s for s in get_args(FactorStorage) if s != "float32"
)


def table(
    spec: TableSpec, stored: StoredRows, decode: Decoder | None, index: Index | None = None
) -> CompressedTable:
    shape = spec.rows, spec.dim
    parts: dict[str, Any] = {"stored": stored, "decode": decode, "index": index}
    parts["padding_idx"] = spec.padding_idx
    if spec.pooling == "none":
        return CompressedEmbedding(*shape, **parts)
    return CompressedBag(*shape, spec.pooling, **parts, last_offset=spec.last_offset)


def plain(spec: Spec, storage: Storage) -> Served:
    """The layer's own matrix in another storage."""
    if isinstance(spec, TableSpec):
        return table(spec, StoredRows(spec.rows, spec.dim, storage), None)
    return CompressedLinear(spec.inputs, spec.outputs, spec.bias, storage)


def low_rank(
    spec: Spec, rank: int, storage: Storage, *, bias: bool, activation: str | None = None
) -> Served:
    """Two factors with `rank` numbers in between.

    Args:
        bias: of the decoder or the layer.
        activation: between the factors of a linear layer.

    Raises:
        BadSettings: the rank is larger than the layer's.
    """
    most = spec.dim if isinstance(spec, TableSpec) else min(spec.inputs, spec.outputs)
    if not 0 <= rank <= most:
        raise BadSettings(f"{spec.name} has ranks from 0 to {most}, so {rank} is none of them")
    if isinstance(spec, LinearSpec):
        return LowRankLinear(
            spec.inputs, spec.outputs, rank, bias=bias, storage=storage, activation=activation
        )
    stored = StoredRows(spec.rows, rank, storage if rank else "float32")
    return table(spec, stored, Affine(rank, spec.dim, of_decoder(storage), bias))


def of_decoder(storage: Storage) -> Storage:
    """The storage of a decoder, which is too small to be rounded further."""
    return "float32" if storage == "float32" else "float16"


def low_rank_and_rest(spec: TableSpec, rank: int, storage: Storage) -> CompressedTable:
    """A table of codes and of what they leave of each column."""
    stored = StoredRows(spec.rows, rank + spec.dim, storage)
    return table(spec, stored, Affine(rank, spec.dim, "float16", True, residual=True))


def corrected(spec: Spec, rank: int, storage: Storage) -> CorrectedLinear:
    """A linear layer of a stored weight and a product of low rank."""
    assert isinstance(spec, LinearSpec)
    return CorrectedLinear(
        spec.inputs, spec.outputs, rank, bias=spec.bias, storage=storage, factors="float16"
    )


def ranks(spec: Spec) -> list[int]:
    """Ranks worth trying: every one for narrow tables, else about four an octave.

    A linear layer's end where two factors are as large as the product.
    """
    if isinstance(spec, TableSpec):
        if spec.dim <= 16:
            return list(range(spec.dim + 1))
        return [0, *(k for k in _ladder(spec.dim) if k < spec.dim), spec.dim]
    end = spec.inputs * spec.outputs / (spec.inputs + spec.outputs)
    return [k for k in _ladder(spec.outputs) if k < end and k <= spec.inputs]


def _ladder(most: int) -> list[int]:
    """1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ... up to `most`."""
    octaves = range(max(most.bit_length() - 2, 0))
    steps = {1, 2, 3} | {quarter << octave for quarter in (4, 5, 6, 7) for octave in octaves}
    return sorted(k for k in steps if k <= most)


def rounded(layer: Layer, storage: Storage, column_weights: Tensor | None = None) -> Served:
    """`plain`, filled; the bias of a linear layer makes up for what rounding does to the mean.

    Args:
        column_weights: float64 [columns], how much an error in each matters.
    """
    served = plain(layer.spec, storage)
    if isinstance(served, CompressedTable):
        served.fill(layer.weight, layer.counts, column_weights)
        return served
    assert isinstance(served, CompressedLinear)
    served.stored.fill(layer.weight, layer.output_weights, column_weights)
    keep_mean(served, layer)
    return served


def keep_mean(served: ServedLinear, layer: Layer) -> None:
    """Set the bias so that the mean output is the layer's; a layer without one has none."""
    if layer.bias is not None:
        lost = (layer.weight - served.to_float()[0]).double() @ layer.inputs.mean
        served.set_bias(layer.bias + lost)
