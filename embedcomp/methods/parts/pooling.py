"""Pools of stored rows that several tables read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import Layer


def join(tables: Sequence[CompressedTable], layers: Sequence[Layer]) -> None:
    """Let tables read one pool, which is the mean of theirs, weighted by how often they read a row.

    Of numbers that were drawn a mean would be too small; a row is then that of the table that
    reads it most.
    """
    reads = torch.stack([t.reads(_weights(of)) for t, of in zip(tables, layers, strict=True)])
    rows = torch.stack([table.stored.to_float() for table in tables])  # [tables, rows, width]
    if layers[0].drawn:
        joined = rows[reads.argmax(0), torch.arange(reads.shape[1])]
    else:
        shares = reads / reads.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
        joined = torch.einsum("tr,trc->rc", shares, rows.double()).float()
    first, *others = tables
    first.fill(joined, reads.sum(0))
    for table in others:
        table.store_with(first)


def _weights(layer: Layer) -> Tensor:
    """Look-ups of each id, a little for those that the log has none of."""
    counts = torch.ones(len(layer.weight)).double() if layer.counts is None else layer.counts
    return counts + counts.mean() * 1e-9
