"""A request's columns, as a log shows them: the first values of each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcomp.engine.engine import Ready
from embedcomp.engine.prepare import Part
from embedcomp.errors import EmbedcompError
from embedcomp.serving.served import Served, Whole, Work

ROWS = 8  # of a column, and ids of a list
CHARS = 200  # of a column as JSON; a longer one becomes a string that ends with CUT
STRING_CHARS = 32  # of a string in a column
CUT = "…"


def columns_of(served: Served, read: Callable[[Served], Work]) -> dict[str, Any] | None:
    """A request's columns by name, fit for JSON; None: they cannot be read."""
    sent = _Sent(served)
    try:
        read(sent)
    except EmbedcompError:
        return None
    return {name: _short(values) for name, values in sent.columns.items()}


class _Sent(Served):
    """A version's double, which keeps what it reads and scores nothing."""

    def __init__(self, of: Served):
        super().__init__(of.scorer, of.settings)
        self.columns: dict[str, list[Any]] = {}

    def read_message(self, message: bytes) -> None:
        """None: a request's bytes have to be parsed."""

    def read(self, items: pa.RecordBatch, user: pa.RecordBatch | None = None) -> Whole:
        for batch in (items,) if user is None else (items, user):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                self.columns[name] = _first(column)
        return Whole(items.num_rows, Ready(_no_scores))

    def read_parts(self, parts: list[Part], rows: int) -> Whole:
        for part in parts:
            self.columns[part.leaf.name] = np.ravel(part.values[:ROWS])[:ROWS].tolist()
        return Whole(rows, Ready(_no_scores))


def _no_scores() -> np.ndarray:
    raise AssertionError("nobody asks for them")


def _first(column: pa.Array) -> list[Any]:
    column = column.slice(0, ROWS)
    if pa.types.is_list(column.type):
        column = pc.list_slice(column, 0, ROWS)
    elif pa.types.is_string(column.type):
        column = pc.utf8_slice_codeunits(column, 0, STRING_CHARS)
    found: list[Any] = column.to_pylist()
    return found


def _short(values: list[Any]) -> list[Any] | str:
    values = [_plain(value) for value in values]
    text = json.dumps(values, ensure_ascii=False)
    return values if len(text) <= CHARS else text[: CHARS - 1] + CUT


def _plain(value: Any) -> Any:
    """A value that JSON has: numbers that are not finite are told by their names."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return value[:STRING_CHARS]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
