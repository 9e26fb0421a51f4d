"""Compressed layers as data: what it takes to build one again, without its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from embedcomp.modules.linear import (
    CompressedLinear,
    CorrectedLinear,
    LowRankLinear,
    MonarchLinear,
    ServedLinear,
)
from embedcomp.modules.ordered import Ordered, OrderedBag, OrderedEmbedding, OrderedLinear
from embedcomp.modules.table import CompressedBag, CompressedEmbedding, CompressedTable
from embedcomp.storage import kinds
from embedcomp.storage.assigned import stored_rows
from embedcomp.storage.decode import Affine, Decoder, Scatter
from embedcomp.storage.index import index_of
from embedcomp.storage.prefixes import Ranks, cut_layout, cut_tensors

Compressed = CompressedTable | ServedLinear
Layout = dict[str, Any]


def layouts(model: nn.Module) -> dict[str, Layout]:
    """The compressed layers of a model, by name."""
    found: dict[str, Layout] = {}
    holders: dict[int, str] = {}  # of stored rows and decoders, the first table of each
    for name, module in model.named_modules():
        if isinstance(module, Compressed):
            found[name] = _layout(module)
        if isinstance(module, CompressedTable):
            parts = [(found[name], module.stored)]
            if isinstance(module.decode, Affine):
                parts.append((found[name]["decode"], module.decode.stored))
            for part, stored in parts:
                holder = holders.setdefault(id(stored), name)
                if holder != name:
                    part["of"] = holder
    return found


def share(model: nn.Module, layouts: Mapping[str, Mapping[str, Any]]) -> None:
    """Give built tables, in their places, the stored rows and the decoders that they share."""
    for name, layout in layouts.items():
        rows_of, decoder_of = layout.get("of"), (layout.get("decode") or {}).get("of")
        if rows_of is not None:
            _table(model, name).store_with(_table(model, rows_of))
        if decoder_of is not None:
            _table(model, name).decode_with(_table(model, decoder_of))


def cut(layer: Compressed, rank: int) -> Compressed:
    """A layer of ordered ranks with its first ones."""
    layout = _layout(layer)
    found = module_of(cut_layout(layout, rank))
    found.load_state_dict(cut_tensors(layout, layer.state_dict(), rank), assign=True)
    assert isinstance(layer, Ordered) and isinstance(found, Ordered)
    found.lasso = layer.lasso
    return found.train(layer.training)


def cut_(model: nn.Module, ranks: Ranks) -> None:
    """Give layers of ordered ranks their first ones alone, in place."""
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Compressed)
        model.set_submodule(name, cut(layer, rank))


def _table(model: nn.Module, name: str) -> CompressedTable:
    found = model.get_submodule(name)
    assert isinstance(found, CompressedTable)
    return found


def _layout(layer: Compressed) -> Layout:
    found = _of_linear(layer) if isinstance(layer, ServedLinear) else _of_table(layer)
    return {**found, "ordered": True} if isinstance(layer, Ordered) else found


def _of_linear(layer: ServedLinear) -> Layout:
    inputs, outputs = layer.in_features, layer.out_features
    bias = None if layer.stored_bias is None else layer.stored_bias.storage
    shape = {"inputs": inputs, "outputs": outputs, "bias": bias}
    if isinstance(layer, CompressedLinear):
        return {"kind": "linear", **shape, "storage": layer.stored.kind.described}
    if isinstance(layer, LowRankLinear):
        factors = {"rank": layer.first.width, "storage": layer.first.storage}
        return {"kind": "low_rank", **shape, **factors, "activation": layer.activation}
    if isinstance(layer, CorrectedLinear):
        storages = {"storage": layer.stored.storage, "factors": layer.first.storage}
        return {"kind": "corrected", **shape, "rank": layer.first.width, **storages}
    assert isinstance(layer, MonarchLinear)
    storage = layer.left.storage
    return {"kind": "monarch", "width": inputs, "blocks": layer.p, "bias": bias, "storage": storage}


def _of_table(layer: CompressedTable) -> Layout:
    table = {
        "kind": "embedding",
        "rows": layer.rows,
        "dim": layer.dim,
        "width": layer.stored.width,
        "storage": layer.stored.kind.described,
        "index": None if layer.index is None else layer.index.described,
        "decode": _of_decoder(layer.decode),
        "padding_idx": layer.padding_idx,
    }
    if isinstance(layer, CompressedEmbedding):
        return table
    assert isinstance(layer, CompressedBag)
    bag = {"pooling": layer.pooling, "last_offset": layer.last_offset, "folded": layer.folded}
    return {**table, "kind": "bag", **bag}


def _of_decoder(decode: Decoder | None) -> Layout | None:
    if decode is None:
        return None
    if isinstance(decode, Scatter):
        assert decode.stored_bias is not None
        return {"kind": "scatter", "storage": decode.stored_bias.storage}
    return {
        "kind": "affine",
        "rank": decode.k,
        "most": decode.stored.rows,
        "storage": decode.stored.storage,
        "bias": decode.has_bias,
        "residual": decode.residual,
    }


def module_of(layout: Mapping[str, Any]) -> Compressed:
    """An empty layer with this layout; what it shares with others is its own until `share`."""
    values = _today(layout)
    values.pop("of", None)
    kind, ordered = values.pop("kind"), values.pop("ordered", False)
    if kind in _LINEARS:
        bias = values.pop("bias")  # in the first formats, whether there is one, of floats
        linear = OrderedLinear if ordered else _LINEARS[kind]
        return linear(**values, bias={True: "float32", False: None}.get(bias, bias))
    rows, dim, width = values.pop("rows"), values.pop("dim"), values.pop("width")
    index, decode = values.pop("index", None), values.pop("decode")
    found = None if index is None else index_of(rows, index)
    held, codes = (rows, width) if found is None else (found.stored, found.width(width))
    parts: dict[str, Any] = {
        "stored": stored_rows(held, width, values.pop("storage")),
        "index": found,
        "decode": _decoder(codes, dim, decode),
    }
    if kind == "embedding":
        embedding = OrderedEmbedding if ordered else CompressedEmbedding
        return embedding(rows, dim, **parts, **values)
    folded = values.pop("folded", False)
    bag = (OrderedBag if ordered else CompressedBag)(rows, dim, **parts, **values)
    bag.folded = folded
    return bag


def _today(layout: Mapping[str, Any]) -> Layout:
    """A layout with its kind of rows; format 2 has what that takes beside the storage's name."""
    values = dict(layout)
    described = values["storage"]
    nonzeros, tiers = values.pop("nonzeros", None), values.pop("tiers", None)
    if nonzeros is not None:
        described = {"name": "csr", "nonzeros": nonzeros}
    elif tiers is not None:
        described = {"name": described, **tiers}
    return {**values, "storage": kinds.of(described)}


_LINEARS: dict[str, Callable[..., ServedLinear]] = {
    "linear": CompressedLinear,
    "low_rank": LowRankLinear,
    "corrected": CorrectedLinear,
    "monarch": MonarchLinear,
}


def _decoder(width: int, dim: int, layout: Mapping[str, Any] | None) -> Decoder | None:
    if layout is None:
        return None
    values = dict(layout)
    values.pop("of", None)
    if values.pop("kind", "affine") == "scatter":
        return Scatter(width, dim, values.get("storage", "float32"))
    return Affine(values.pop("rank", width), dim, **values)
