"""Layers whose ranks lie in order of worth, cut to their first ones: the same bytes, fewer of them.

A cut is made of a layer's description (modules/layout.py) and of its tensors, arrays of numpy or of
torch, so that scoring needs no torch for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedcomp.storage import kinds
from embedcomp.storage.kind import Kind, RowByRow

Layout = Mapping[str, Any]
Ranks = Mapping[str, int]  # by layer; others are not cut


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One of the steps, from a model in full, to its ever smaller forms.

    rank: of the layer, from this step on.
    bytes: of the whole model after it.
    loss: predicted increase of the mean log loss over the model in full, by all steps so far.
    """

    layer: str
    rank: int
    bytes: int
    loss: float


def ranks_within(cuts: Sequence[Cut], most_bytes: int) -> Ranks | None:
    """Ranks of the largest form within so many bytes; None: all are larger.

    The model in full is larger as well.
    """
    ranks: dict[str, int] = {}
    for cut in cuts:
        ranks[cut.layer] = cut.rank
        if cut.bytes <= most_bytes:
            return ranks
    return None


def cut_layout(layout: Layout, rank: int) -> dict[str, Any]:
    """The description of a layer with its first ranks."""
    assert layout.get("ordered"), layout
    if layout["kind"] == "low_rank":
        return {**layout, "rank": rank}
    return {**layout, "width": rank, "decode": {**layout["decode"], "rank": rank, "most": rank}}


def cut_tensors(layout: Layout, held: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The tensors of a layer with its first ranks, by their names within it.

    Args:
        layout: of the layer in full.
    """
    found = dict(held)
    for part, (kind, columns) in _parts(layout).items():
        state = {n.removeprefix(f"{part}."): t for n, t in held.items() if n.startswith(f"{part}.")}
        cut = kind.first(state, rank) if columns else {**state, "stored": state["stored"][:rank]}
        found |= {f"{part}.{name}": _own(tensor) for name, tensor in cut.items()}
    return found


def ranks_are_columns(layout: Layout) -> dict[str, bool]:
    """Stored matrices by their names; a lower rank has fewer of their columns, or of their rows."""
    return {part: columns for part, (_, columns) in _parts(layout).items()}


def _parts(layout: Layout) -> dict[str, tuple[RowByRow, bool]]:
    """The stored matrices whose columns (True) or rows are ranks, by their names in the layer."""
    own = _by_row(layout["storage"])
    if layout["kind"] == "low_rank":
        return {"first": (own, True), "second": (own, True)}
    return {"stored": (own, True), "decode.stored": (_by_row(layout["decode"]["storage"]), False)}


def _by_row(described: str | Mapping[str, Any]) -> RowByRow:
    kind: Kind = kinds.of(described)
    assert isinstance(kind, RowByRow)
    return kind


def _own(tensor: Any) -> Any:
    """A part of a tensor that keeps nothing else in memory."""
    return np.ascontiguousarray(tensor) if isinstance(tensor, np.ndarray) else tensor.clone()
