"""Bytes of served modules and models."""

from __future__ import annotations

from torch import nn

from embedcomp.modules.table import CompressedTable


def module_bytes(module: nn.Module) -> int:
    """Bytes of every parameter and buffer, each counted once."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def model_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of all parameters and buffers: "total", of which "tables" and "dense"."""
    kinds = (CompressedTable, nn.EmbeddingBag, nn.Embedding)
    tables = nn.ModuleList(module for module in model.modules() if isinstance(module, kinds))
    total, in_tables = module_bytes(model), module_bytes(tables)
    return {"total": total, "tables": in_tables, "dense": total - in_tables}
