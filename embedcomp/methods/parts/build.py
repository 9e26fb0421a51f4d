"""From a layer to the served modules that methods choose among."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import torch

from embedcomp.errors import BadSettings
from embedcomp.modules.linear import (
    CompressedLinear,
    CorrectedLinear,
    LowRankLinear,
    ServedLinear,
)
from embedcomp.modules.ordered import OrderedBag, OrderedEmbedding, OrderedLinear
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedBag, CompressedEmbedding, CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.storage.decode import Affine, Decoder
from embedcomp.storage.index import Index
from embedcomp.storage.kinds.product import Product
from embedcomp.storage.names import (
    AnyStorage,
    ColumnStorage,
    FactorStorage,
    ProductBits,
    Storage,
)
from embedcomp.storage.rows import StoredRows

# the same where a method is a baseline, or chooses more than the storage
FEW_STORAGES: tuple[FactorStorage, ...] = (
    "float16",
    "column_int8",
    "column_mixed4",
    "column_mixed3",
)

S = TypeVar("S")

COLUMN_STORAGES: tuple[ColumnStorage, ...] = get_args(ColumnStorage)
FACTOR_STORAGES: tuple[FactorStorage, ...] = tuple(
    s for s in get_args(FactorStorage) if s != "float32"
)


def table(
    spec: TableSpec,
    stored: StoredRows,
    decode: Decoder | None,
    index: Index | None = None,
    *,
    ordered: bool = False,
) -> CompressedTable:
    shape = spec.rows, spec.dim
    parts: dict[str, Any] = {"stored": stored, "decode": decode, "index": index}
    parts["padding_idx"] = spec.padding_idx
    if spec.pooling == "none":
        return (OrderedEmbedding if ordered else CompressedEmbedding)(*shape, **parts)
    bag = OrderedBag if ordered else CompressedBag
    return bag(*shape, spec.pooling, **parts, last_offset=spec.last_offset)


def plain(spec: Spec, storage: AnyStorage) -> Served:
    """The layer's own matrix in another storage.

    A linear layer that reads nothing, since the decoders folded into it left no codes, is its bias:
    its matrix has no column that a scale could be of.
    """
    if isinstance(spec, TableSpec):
        return table(spec, StoredRows(spec.rows, spec.dim, storage), None)
    bias = of_bias(spec.outputs, spec.bias, storage)
    of_weight = storage if spec.inputs else "float32"
    return CompressedLinear(spec.inputs, spec.outputs, bias, of_weight)


def low_rank(
    spec: Spec,
    rank: int,
    storage: AnyStorage,
    *,
    bias: bool = True,
    activation: str | None = None,
    ordered: bool = False,
) -> Served:
    """Two factors with `rank` numbers in between.

    Args:
        bias: of the decoder or the layer.
        activation: between the factors of a linear layer.
        ordered: it is trained so that its ranks lie in order of worth.

    Raises:
        BadSettings: the rank is larger than the layer's.
    """
    most = spec.dim if isinstance(spec, TableSpec) else min(spec.inputs, spec.outputs)
    if not 0 <= rank <= most:
        raise BadSettings(f"{spec.name} has ranks from 0 to {most}, so {rank} is none of them")
    if isinstance(spec, LinearSpec):
        return (OrderedLinear if ordered else LowRankLinear)(
            spec.inputs,
            spec.outputs,
            rank,
            bias=of_bias(spec.outputs, bias, storage),
            storage=storage,
            activation=activation,
        )
    stored = StoredRows(spec.rows, rank, storage if rank else "float32")
    decode = Affine(rank, spec.dim, of_decoder(storage), bias)
    return table(spec, stored, decode, ordered=ordered)


def of_decoder(storage: AnyStorage) -> Storage:
    """The storage of a decoder, which is too small to be rounded further."""
    return "float32" if storage == "float32" else "float16"


def of_bias(outputs: int, biased: bool, storage: AnyStorage) -> Storage | None:
    """The storage of a layer's bias: a byte a number and a scale where its weight has few bits.

    Args:
        biased: whether it has one.
        storage: of the weight.
    """
    if not biased:
        return None
    if storage == "float32":
        return "float32"
    return "float16" if storage in ("float16", "bfloat16") or outputs <= 4 else "row_int8"


def low_rank_and_rest(spec: TableSpec, rank: int, storage: Storage) -> CompressedTable:
    """A table of low-rank codes and of the rounded rest of each column."""
    stored = StoredRows(spec.rows, rank + spec.dim, storage)
    return table(spec, stored, Affine(rank, spec.dim, "float16", True, residual=True))


def corrected(spec: Spec, rank: int, storage: Storage) -> CorrectedLinear:
    """A linear layer of a stored weight and a product of low rank."""
    assert isinstance(spec, LinearSpec)
    return CorrectedLinear(
        spec.inputs,
        spec.outputs,
        rank,
        bias=of_bias(spec.outputs, spec.bias, storage),
        storage=storage,
        factors="float16",
    )


def ranks(spec: Spec) -> list[int]:
    """Ranks worth trying: every one for narrow tables, else about four an octave.

    Of rank 0 is what always puts out its mean. A linear layer's ranks end where two factors are as
    large as the product.
    """
    if isinstance(spec, TableSpec):
        if spec.dim <= 16:
            return list(range(spec.dim + 1))
        return [0, *(k for k in _ladder(spec.dim) if k < spec.dim), spec.dim]
    end = spec.inputs * spec.outputs / (spec.inputs + spec.outputs)
    return [0, *(k for k in _ladder(spec.outputs) if k < end and k <= spec.inputs)]


def _ladder(most: int) -> list[int]:
    """1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ... up to `most`."""
    octaves = range(max(most.bit_length() - 2, 0))
    steps = {1, 2, 3} | {quarter << octave for quarter in (4, 5, 6, 7) for octave in octaves}
    return sorted(k for k in steps if k <= most)


def product_codes(spec: Spec, columns: int, parts: int, bits: ProductBits) -> AnyStorage:
    """The storage of a layer's columns by product codes: parts of columns, each with a codebook.

    Raises:
        BadSettings: there are more parts than columns.
    """
    if not 1 <= parts <= columns:
        raise BadSettings(
            f"{spec.name} has {columns} columns to be quantized, so they can be taken in 1 to "
            f"{columns} parts and not in {parts}"
        )
    return Product(parts, bits)


def code_sizes(width: int) -> list[tuple[int, ProductBits]]:
    """Parts and bits of product codes worth trying: an eighth of the rows' bytes at most."""
    octaves = [1 << octave for octave in range(width.bit_length())]
    sizes: tuple[ProductBits, ...] = (8, 4)
    return [
        (parts, bits)
        for bits in sizes
        for parts in octaves
        if parts <= width and parts * bits <= 4 * width
    ]


def paying(spec: Spec, found: list[S], empty: Callable[[Spec, S], Served]) -> list[S]:
    """Those of the settings that make a layer a quarter of its size; else the smallest of them.

    Codebooks and dictionaries of small tables are larger than what their codes save.
    """
    with torch.device("meta"):
        sizes = {settings: module_bytes(empty(spec, settings)) for settings in found}
    weights = spec.rows * spec.dim if isinstance(spec, TableSpec) else spec.inputs * spec.outputs
    good = [settings for settings in found if sizes[settings] <= weights]
    return good or sorted(found, key=lambda settings: sizes[settings])[:1]


def rounded(layer: Layer, storage: AnyStorage) -> Served:
    """`plain`, filled; the bias of a linear layer makes up for what rounding does to the mean."""
    served = plain(layer.spec, storage)
    if isinstance(served, CompressedTable):
        columns = None if layer.gradient is None else layer.gradient.diagonal()
        served.fill(layer.columns(), None, columns)
        return served
    assert isinstance(served, CompressedLinear)
    columns = layer.inputs.second.diagonal()
    served.stored.fill(layer.columns(), None, columns)
    keep_mean(served, layer)
    return served


def keep_mean(served: ServedLinear, layer: Layer) -> None:
    """Set the bias so that the mean output is the layer's; a layer without one has none."""
    if layer.bias is not None:
        lost = (layer.weight - served.to_float()[0]).double() @ layer.inputs.mean
        served.set_bias(layer.bias + lost)
