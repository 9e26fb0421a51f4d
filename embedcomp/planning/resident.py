"""Bytes that choices for layers would take in a scorer's memory, before anything is compressed."""

from __future__ import annotations

from collections.abc import Hashable

from embedcomp.engine.arrays import as_array
from embedcomp.engine.ops import Linear
from embedcomp.engine.pack import packed_bytes
from embedcomp.engine.tensors import bytes_by_name
from embedcomp.modules.linear import LowRankLinear
from embedcomp.modules.sizes import module_bytes
from embedcomp.modules.table import CompressedTable
from embedcomp.planning.choices import Chosen
from embedcomp.planning.lowered import Lowered, Product
from embedcomp.planning.sharing import pool_of
from embedcomp.sensitivity.layer import Served


def resident(lowered: Lowered, chosen: Chosen) -> dict[str, int]:
    """Bytes in memory by layer, as a program's `resident` counts them.

    They are exact but for the codebooks of `tiered` rows, whose sizes depend on how bits are shared
    out among columns; those are counted as if all columns had as many. Under "" is what no choice
    changes.
    """
    by_layer = lowered.program.resident
    found = {"": sum(size for name, size in by_layer.items() if name not in lowered.layers)}
    folding = {
        reader
        for name, choice in chosen.items()
        for reader in lowered.shape(lowered.layers[name].spec, choice).folding
    }
    holders: dict[Hashable, str] = {}  # of stored rows
    for name, choice in chosen.items():
        served = lowered.shape(lowered.layers[name].spec, choice).served
        if isinstance(served, CompressedTable):
            found[name] = 0
            if name in by_layer:  # else nobody looks anything up there
                rows = pool_of(choice.method, choice.settings) or name
                counted = holders.setdefault(rows, name) != name
                found[name] = _of_table(lowered, name, served, counted)
        else:
            widths, products = lowered.inputs(name, chosen), lowered.products
            found[name] = sum(map(_packed, products(name, served, widths, name in folding)))
            found[name] += _unpacked(lowered, name, served)
    return found


def _of_table(lowered: Lowered, name: str, served: CompressedTable, counted: bool) -> int:
    """Bytes of a table.

    Args:
        counted: its stored rows are those of another one.
    """
    places = 0 if served.index is None else module_bytes(served.index)
    decoded = sum(map(_packed, lowered.decoders(name, served)))
    return places + (0 if counted else _located(served)) + decoded


def _located(served: CompressedTable) -> int:
    """Bytes of stored rows with all that it takes to read them, found on rows without values."""
    stored = served.stored
    empty = stored.kind.empty(stored.rows, stored.width)
    held = {name: as_array(tensor) for name, tensor in empty.items()}
    found = stored.kind.located(held, stored.rows, stored.width, -1)
    mixed = stored.kind.scaled and not served.scaled  # by scales and offsets that lie beside
    kept = (*found.held, found.grid) if mixed else found.held
    return sum(bytes_by_name(("", a) for a in kept if hasattr(a, "nbytes")).values())


def _packed(product: Product) -> int:
    weight = packed_bytes(product.inputs, product.outputs, product.form)
    return weight + 4 * product.outputs * product.bias


def _unpacked(lowered: Lowered, name: str, served: Served) -> int:
    """Bytes of a linear layer's numbers that something else than its products reads.

    A layer of rank 0 has its bias there.
    """
    if isinstance(served, LowRankLinear) and not served.first.width:
        return 4 * served.out_features
    ops = (op for op in lowered.program.ops if isinstance(op, Linear) and op.layer == name)
    packed = sum(op.nbytes for op in ops)
    return lowered.program.resident.get(name, 0) - packed
