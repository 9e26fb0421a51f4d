"""Bytes of what is served, and budgets of them."""

from __future__ import annotations

import re

from torch import nn

from embedcomp.errors import BadSettings
from embedcomp.modules.table import CompressedTable

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_budget(text: str, original_bytes: int) -> int:
    """Bytes of "5x" (five times smaller), "20%", "4MiB", "300kB" or "123456".

    Raises:
        BadSettings: it is none of these, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*|%)", text.strip().replace(",", ""))
    number, unit = (float(match[1]), match[2].lower()) if match else (0.0, "")
    if number <= 0 or unit not in {*_UNITS, "x", "%"}:
        raise BadSettings(
            f"the budget {text!r} is not a positive size; write 5x, 20%, 4MiB, 300kB or bytes"
        )
    if unit == "x":
        return int(original_bytes / number)
    return int(original_bytes * number / 100) if unit == "%" else int(number * _UNITS[unit])


def module_bytes(module: nn.Module) -> int:
    """Bytes of every parameter and buffer, each counted once."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def model_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of all parameters and buffers: "total", of which "tables" and "dense"."""
    kinds = (CompressedTable, nn.EmbeddingBag, nn.Embedding)
    tables = nn.ModuleList(module for module in model.modules() if isinstance(module, kinds))
    total, in_tables = module_bytes(model), module_bytes(tables)
    return {"total": total, "tables": in_tables, "dense": total - in_tables}
