"""All tables of a collection in one lookup: for scoring, where nothing is trained.

A collection calls one module a table and a few operators a module, which costs more than the work
itself when batches are small. Here one compiled call gathers, dequantizes, pools and decodes the
rows of every table (lookup.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from embedcomp.served import native
from embedcomp.served.formats import ColumnWise, MixedColumns, Plain, RowWise, column_bits, places
from embedcomp.served.rows import StoredRows
from embedcomp.served.table import CompressedBag

MOST_WIDTH = 4096  # columns of a table, as in lookup.cpp
_FLOAT32, _FLOAT16, _COLUMNS, _ROWS = range(4)


def fuse(model: nn.Module) -> nn.Module:
    """Put a `FusedTables` in the place of every collection that can be one; in place.

    A model with nothing to fuse is given back as it is, and so is every model where the compiled
    lookup is missing. The model can then only score: its tables must not change.
    """
    for parent, name, collection in _fusable(model):
        setattr(parent, name, FusedTables(collection))
    return model


@contextmanager
def fused(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block, the model is as `fuse` makes it."""
    replaced = _fusable(model)
    try:
        yield fuse(model)
    finally:
        for parent, name, collection in replaced:
            setattr(parent, name, collection)


def _fusable(model: nn.Module) -> list[tuple[nn.Module, str, EmbeddingBagCollection]]:
    """Collections that can be fused, and where they are."""
    if native.library() is None:
        return []
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is EmbeddingBagCollection and _can_fuse(child)
    ]


def _can_fuse(collection: EmbeddingBagCollection) -> bool:
    bags = collection.embedding_bags.values()
    return not collection.is_weighted() and all(_is_plain(bag) for bag in bags)


def _is_plain(bag: nn.Module) -> bool:
    if isinstance(bag, CompressedBag):
        decode = bag.decode
        thawed = bag.stored.thawed or (decode is not None and decode.stored.thawed)
        widest, device = max(bag.stored.width, bag.dim), bag.stored.device
    elif type(bag) is nn.EmbeddingBag and bag.mode in ("sum", "mean") and bag.max_norm is None:
        thawed, widest = bag.weight.dtype != torch.float32, bag.embedding_dim
        device = bag.weight.device
    else:
        return False
    fits = bag.padding_idx is None and widest <= MOST_WIDTH
    return fits and not thawed and device.type == "cpu"


class FusedTables(nn.Module):
    """Takes what an EmbeddingBagCollection takes, and gives what it gives.

    Args:
        collection: of sum and mean bags, plain or compressed, without weights; its tensors are
            read where they are.
    """

    def __init__(self, collection: EmbeddingBagCollection):
        super().__init__()
        self.collection = collection
        self._names: list[str] = collection._embedding_names
        configs = collection.embedding_bag_configs()
        self._features = [name for c in configs for name in c.feature_names]
        self._widths = [c.embedding_dim for c in configs for _ in c.feature_names]
        self._held: list[Tensor] = []  # what the kernel's table points to
        tables: list[native.Table] = []
        self.width = self.code_width = 0  # of what is put out
        for config in configs:
            bag = collection.embedding_bags[config.name]
            for _ in config.feature_names:
                tables.append(self._table(bag))
                self.width += config.embedding_dim
                folded = getattr(bag, "folded", False)
                self.code_width += bag.stored.width if folded else config.embedding_dim
        self._tables = (native.Table * len(tables))(*tables)
        self._folded = self.code_width != self.width

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return self.collection.embedding_bag_configs()

    @property
    def embedding_bags(self) -> nn.ModuleDict:
        return self.collection.embedding_bags

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        values = torch.empty(sparse.stride(), self.width)
        self._look_up(sparse, None, values)
        return KeyedTensor(self._names, self._widths, values)

    def look_up(self, sparse: KeyedJaggedTensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, code_width + D] and rows [B, width + D], each with the dense features [B, D].

        Codes of tables that are not folded are their rows.

        Raises:
            IndexError: an id is out of its table's range.
        """
        batch, features = dense.shape
        values = torch.empty(batch, self.width + features)
        values[:, self.width :] = dense
        codes = None
        if self._folded:
            codes = torch.empty(batch, self.code_width + features)
            codes[:, self.code_width :] = dense
        self._look_up(sparse, codes, values)
        return values if codes is None else codes, values

    def _look_up(self, sparse: KeyedJaggedTensor, codes: Tensor | None, values: Tensor) -> None:
        sparse = in_order(sparse, self._features)
        ids, offsets = sparse.values().contiguous(), sparse.offsets().contiguous()
        library = native.library()
        assert library is not None and ids.dtype == offsets.dtype == torch.int64
        bad = library.embedcomp_lookup(
            self._tables,
            len(self._tables),
            len(values),
            ids.data_ptr(),
            offsets.data_ptr(),
            None if codes is None else codes.data_ptr(),
            0 if codes is None else codes.shape[1],
            values.data_ptr(),
            values.shape[1],
        )
        if bad >= 0:
            feature = int(torch.searchsorted(offsets, bad, right=True) - 1) // len(values)
            rows = self._tables[feature].num_rows
            raise IndexError(
                f"feature {self._features[feature]!r} has id {int(ids[bad])}, "
                f"but its table has rows 0 to {rows - 1}"
            )

    def _table(self, bag: nn.Module) -> native.Table:
        made = native.Table(values_at=self.width, codes_at=self.code_width)
        if isinstance(bag, CompressedBag):
            self._set_rows(made, bag.stored)
            made.mean, made.folded = bag.pooling == "mean", bag.folded
            if bag.decode is not None:
                made.decodes = True
                made.decoder = self._hold(bag.decode.stored.to_float())
                made.bias = None if bag.decode.bias is None else self._hold(bag.decode.bias)
            made.dim, made.num_rows = bag.dim, bag.rows
            return made
        assert isinstance(bag, nn.EmbeddingBag)
        made.rows, made.kind = self._hold(bag.weight), _FLOAT32
        made.num_rows, made.width = bag.weight.shape
        made.dim, made.row_bytes, made.mean = made.width, 4 * made.width, bag.mode == "mean"
        return made

    def _set_rows(self, made: native.Table, stored: StoredRows) -> None:
        held, rounding, grid = stored.stored, stored.format, stored.grid
        assert held is not None
        made.rows, made.width = self._hold(held), stored.width
        made.row_bytes = held.shape[1] * held.element_size()
        if isinstance(rounding, Plain):
            made.kind = _FLOAT16 if rounding.dtype == torch.float16 else _FLOAT32
        elif isinstance(rounding, RowWise):
            made.kind, made.bits = _ROWS, rounding.bits
        else:
            assert isinstance(rounding, ColumnWise | MixedColumns) and grid is not None
            bits = column_bits(rounding, grid)
            byte, shift = places(bits)
            made.kind = _COLUMNS
            made.byte, made.shift = self._hold(byte.int()), self._hold(shift.int())
            made.mask = self._hold((1 << bits.int()) - 1)
            made.scale, made.offset = self._hold(grid[0]), self._hold(grid[1])

    def _hold(self, tensor: Tensor) -> int:
        """Where the tensor's values lie, for as long as this module lives."""
        self._held.append(tensor.detach().contiguous())
        return self._held[-1].data_ptr()


def in_order(sparse: KeyedJaggedTensor, features: Sequence[str]) -> KeyedJaggedTensor:
    """The features in the order asked for, and no others."""
    keys = sparse.keys()
    if keys == features:
        return sparse
    return sparse.permute([keys.index(name) for name in features])
