"""Compressed tables: an index map, stored rows and, where the rows are codes, a decoder."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from embedcomp.storage.columns import Columns
from embedcomp.storage.decode import Affine, Decoder
from embedcomp.storage.index import Index, Probed
from embedcomp.storage.rows import StoredRows
from embedcomp.storage.training import Group, Trains

Pooling = Literal["sum", "mean", "none"]  # "none": a sequence of rows, as nn.Embedding gives


class CompressedTable(Trains):
    """What bags and sequences have in common: rows that are looked up and decoded.

    Args:
        rows, dim: shape of the table that it stands for.
        stored: its rows. What an id reads of them is k wide if there is a decoder, else `dim`
            wide. k may be 0: then every row is the decoder's bias.
        index: which stored row an id reads; None: its own.
        padding_idx: row that counts for nothing: a bag skips it, a sequence gives zeros for it.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        stored: StoredRows,
        *,
        decode: Decoder | None,
        index: Index | None = None,
        padding_idx: int | None = None,
    ):
        super().__init__()
        assert stored.rows == (rows if index is None else index.stored)
        self.rows, self.dim, self.padding_idx = rows, dim, padding_idx
        self.index, self.stored, self.decode = index, stored, decode
        assert decode is not None or self.code_width == dim

    @property
    def code_width(self) -> int:
        """k, the numbers that are looked up for an id."""
        stored = self.stored.width
        return stored if self.index is None else self.index.width(stored)

    @property
    def scaled(self) -> bool:
        """Whether the engine looks whole numbers up, whose scales are in what decodes them."""
        mixes = isinstance(self.index, Probed) and self.index.probes.mixes
        return self.stored.kind.scaled and not mixes

    def fill(
        self,
        codes: Tensor | Columns,
        row_weights: Tensor | None = None,
        column_weights: Tensor | None = None,
    ) -> None:
        """Store rows [stored rows, their width]: codes, or the table's own without a decoder."""
        self.stored.fill(codes, row_weights, column_weights)

    def decode_with(self, other: CompressedTable) -> None:
        """Share the other's decoder, all but its bias, from now on."""
        assert isinstance(self.decode, Affine) and isinstance(other.decode, Affine)
        own, shared = self.decode.stored, other.decode.stored
        assert (own.rows, own.width, own.storage) == (shared.rows, shared.width, shared.storage)
        self.decode.stored = shared

    def groups(self) -> list[Group]:
        """The stored rows, of which a batch reads a few; they are read by nothing else."""
        master = self.stored.master
        return [] if master is None else [Group((master,), "rows")]

    def store_with(self, other: CompressedTable) -> None:
        """Read the other's stored rows from now on, by its own index."""
        own, shared = self.stored, other.stored
        assert (own.rows, own.width, own.kind) == (shared.rows, shared.width, shared.kind)
        self.stored = shared

    def gather(self, ids: Tensor) -> Tensor:
        """Codes [n, k] of ids [n]."""
        if self.index is None:
            return self.stored.gather(ids)
        return self.index.gather(ids, self.stored.gather)

    def reads(self, counts: Tensor | None) -> Tensor:
        """How often each stored row is read, float64 [stored rows].

        Args:
            counts: of look-ups of each id, [rows]; None: all are looked up alike.
        """
        ids = torch.arange(self.rows)
        places = ids[:, None] if self.index is None else self.index(ids).view(self.rows, -1)
        counts = torch.ones(self.rows) if counts is None else counts
        each = counts.double().repeat_interleave(places.shape[1])
        return torch.zeros(self.stored.rows).double().index_add_(0, places.reshape(-1), each)

    def codes_of_rows(self) -> Tensor:
        """The codes of every id [rows, k]."""
        stored = self.stored.to_float()
        if self.index is None:
            return stored
        ids = torch.arange(self.rows, device=stored.device)
        return self.index.gather(ids, lambda rows: stored.index_select(0, rows))

    def decoded(self, codes: Tensor, constant: Tensor) -> Tensor:
        """Pooled codes [B, k] to [B, dim]; `constant` [B, 1] is how often a bag has the bias."""
        return codes if self.decode is None else self.decode(codes, constant)

    def to_float(self) -> Tensor:
        """The table that it stands for: [rows, dim]."""
        codes = self.codes_of_rows()
        return self.decoded(codes, codes.new_ones(1, 1))

    # What modules around a table read of it.

    @property
    def weight(self) -> Tensor:
        return self.to_float()

    @property
    def num_embeddings(self) -> int:
        return self.rows

    @property
    def embedding_dim(self) -> int:
        return self.dim


class CompressedEmbedding(CompressedTable):
    """Stands for an nn.Embedding: ids of any shape to rows [..., dim]."""

    def forward(self, input: Tensor) -> Tensor:
        codes = self.gather(input.reshape(-1))
        rows = self.decoded(codes, codes.new_ones(1, 1)).view(*input.shape, self.dim)
        if self.padding_idx is None:
            return rows
        return rows.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)


class CompressedBag(CompressedTable):
    """Stands for an nn.EmbeddingBag.

    Pooling commutes with an affine decoder, so the k-wide codes are pooled and every bag is decoded
    once; an empty bag gives zeros.

    Args:
        pooling: "sum" or "mean".
        last_offset: offsets end with the number of ids, as torchrec's do.
    """

    folds = True  # its decoder may be folded into the layers that read it
    folded = False  # a reader of `Embedded` takes the codes as they are

    def __init__(
        self,
        rows: int,
        dim: int,
        pooling: Pooling,
        stored: StoredRows,
        *,
        decode: Decoder | None,
        index: Index | None = None,
        last_offset: bool = True,
        padding_idx: int | None = None,
    ):
        super().__init__(rows, dim, stored, decode=decode, index=index, padding_idx=padding_idx)
        self.pooling, self.last_offset = pooling, last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Ids [n] and offsets, or ids [B, L], to pooled rows [B, dim]."""
        return self.decoded(*self.codes(input, offsets, per_sample_weights))

    def codes(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pooled codes [B, k] and how often each bag has the decoder's bias, [B, 1]."""
        bounds, ids = bag_bounds(input, offsets, self.last_offset), input.reshape(-1)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        if weights is not None and self.pooling == "mean":
            raise ValueError("a bag of means takes no per_sample_weights; sum it instead")
        weights, rows = kept(ids, weights, self.padding_idx), self.gather(ids)
        if weights is None:
            lengths = bounds.diff()[:, None].float()
            constant = lengths.clamp_max(1) if self.pooling == "mean" else lengths
            return pooled(rows, bounds, self.pooling, None), constant
        total, constant = pooled(rows, bounds, "sum", weights), pooled_weights(weights, bounds)
        if self.pooling == "mean":  # of the ids that are not padding
            return total / constant.clamp_min(1), constant.clamp_max(1)
        return total, constant


def bag_bounds(input: Tensor, offsets: Tensor | None, last_offset: bool) -> Tensor:
    """Bounds of the bags, int [B + 1]: bag i holds ids bounds[i] to bounds[i + 1]."""
    if offsets is None:
        length = input.shape[1]
        return torch.arange(len(input) + 1, device=input.device) * length
    if last_offset:
        return offsets
    end = torch.full((1,), len(input), dtype=offsets.dtype, device=offsets.device)
    return torch.cat([offsets, end])


def kept(ids: Tensor, weights: Tensor | None, padding_idx: int | None) -> Tensor | None:
    """Weights [n] of ids with those of padding at 0; None: all ids weigh 1."""
    if padding_idx is None:
        return weights
    real = (ids != padding_idx).float()
    return real if weights is None else weights * real


def pooled_weights(weights: Tensor, bounds: Tensor) -> Tensor:
    """Weights [n] to the bags' sums [B, 1]."""
    return pooled(weights[:, None], bounds, "sum", None)


def pooled(rows: Tensor, bounds: Tensor, pooling: str, weights: Tensor | None) -> Tensor:
    """Rows [n, k] to the bags' sums or means [B, k]."""
    if not rows.shape[1]:
        return rows.new_zeros(len(bounds) - 1, 0)
    places = torch.arange(len(rows), dtype=bounds.dtype, device=rows.device)
    return F.embedding_bag(
        places, rows, bounds, mode=pooling, per_sample_weights=weights, include_last_offset=True
    )
