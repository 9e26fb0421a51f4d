"""Compressed layers as data: what it takes to build one again, without its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from embedcomp.served.linear import CompressedLinear, LowRankLinear
from embedcomp.served.rows import StoredRows
from embedcomp.served.table import Affine, CompressedBag, CompressedEmbedding

Compressed = CompressedBag | CompressedEmbedding | CompressedLinear | LowRankLinear


def layouts(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The compressed layers of a model, by name."""
    return {n: _layout(m) for n, m in model.named_modules() if isinstance(m, Compressed)}


def _layout(layer: Compressed) -> dict[str, Any]:
    if isinstance(layer, CompressedLinear):
        return {"kind": "linear", **_linear(layer), "storage": layer.stored.storage}
    if isinstance(layer, LowRankLinear):
        factors = {"rank": layer.first.width, "storage": layer.first.storage}
        return {"kind": "low_rank", **_linear(layer), **factors, "activation": layer.activation}
    stored, decode = layer.stored, layer.decode
    decoder = None
    if decode is not None:
        decoder = {"storage": decode.stored.storage, "bias": decode.bias is not None}
    table = {
        "kind": "embedding",
        "rows": layer.rows,
        "dim": layer.dim,
        "width": stored.width,
        "storage": stored.storage,
        "decode": decoder,
        "padding_idx": layer.padding_idx,
    }
    if isinstance(layer, CompressedEmbedding):
        return table
    bag = {"pooling": layer.pooling, "last_offset": layer.last_offset, "folded": layer.folded}
    return {**table, "kind": "bag", **bag}


def _linear(layer: CompressedLinear | LowRankLinear) -> dict[str, Any]:
    bias = layer.bias is not None
    return {"inputs": layer.in_features, "outputs": layer.out_features, "bias": bias}


def build(layout: Mapping[str, Any]) -> Compressed:
    """An empty layer with this layout."""
    values = dict(layout)
    kind = values.pop("kind")
    if kind == "linear":
        return CompressedLinear(**values)
    if kind == "low_rank":
        return LowRankLinear(values.pop("inputs"), values.pop("outputs"), **values)
    stored = StoredRows(values["rows"], values.pop("width"), values.pop("storage"))
    decoder, folded = values.pop("decode"), values.pop("folded", False)
    decode = None if decoder is None else Affine(stored.width, values["dim"], **decoder)
    rows, dim = values.pop("rows"), values.pop("dim")
    if kind == "embedding":
        return CompressedEmbedding(rows, dim, stored, decode=decode, **values)
    bag = CompressedBag(rows, dim, values.pop("pooling"), stored, decode=decode, **values)
    bag.folded = folded
    return bag
