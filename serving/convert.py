"""Columns between the wire and Arrow, in both directions; scoring.proto says how they look.

Numbers come off the wire without a copy; nothing is trusted that a client may get wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from embedcomp.errors import BadRequest
from embedcomp.log.click_log import canonical_type
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2 as wire

NUMBERS = {"ids": pa.int64(), "numbers": pa.float32()}  # little-endian, as Arrow's own here


def to_request(
    items: pa.RecordBatch, user: pa.RecordBatch | None = None, model: str = "", version: int = 0
) -> wire.PredictRequest:
    """A request for the scores of `items`, one row a candidate; `user` has one row.

    Raises:
        BadRequest: a column's type cannot be sent.
    """
    request = wire.PredictRequest(model=model, version=version)
    for columns, batch in ((request.items, items), (request.user, user)):
        if batch is not None:
            for name, array in zip(batch.schema.names, batch.columns, strict=True):
                columns[name].CopyFrom(to_column(name, array))
    return request


def to_column(name: str, array: pa.Array) -> wire.Column:
    """An Arrow array as the wire's column.

    Integers travel as int64 and other numbers as float32; dictionaries travel as their values.

    Raises:
        BadRequest: the array holds something else than numbers, strings or lists of ids.
    """
    array = _sendable(name, array)
    column = wire.Column(null_rows=_null_places(array))
    if pa.types.is_list(array.type):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        column.lengths = lengths.astype("<i4").tobytes()
        array = array.flatten()  # without the null rows, also of a slice
        column.null_values = _null_places(array)
    if array.null_count:
        array = array.fill_null("" if array.type == pa.string() else 0)
    if array.type == pa.string():
        column.strings.CopyFrom(wire.Strings(values=array.to_pylist()))
    elif array.type == pa.int64():
        column.ids = array.to_numpy().astype("<i8", copy=False).tobytes()
    else:
        column.numbers = array.to_numpy().astype("<f4", copy=False).tobytes()
    return column


def _sendable(name: str, array: pa.Array) -> pa.Array:
    """The array as int64, string, float32, or a list of ids."""
    if pa.types.is_null(array.type):
        return array.cast(pa.int64())
    if array.type == pa.list_(pa.null()):  # nothing but empty lists and nulls
        return array.cast(pa.list_(pa.int64()))
    kind = canonical_type(array.type)
    if kind is None:
        raise BadRequest(
            name, f"holds {array.type} values; send numbers, strings, or lists of int64 or string"
        )
    try:
        return array if array.type == kind else array.cast(kind)
    except pa.ArrowException as error:
        raise BadRequest(
            name, f"{array.type} values do not all fit {kind}", values=f": {error}"
        ) from error


def _null_places(array: pa.Array) -> bytes:
    if not array.null_count:
        return b""
    nulls = array.is_null().to_numpy(zero_copy_only=False)
    return np.flatnonzero(nulls).astype("<i4").tobytes()


def from_request(
    request: wire.PredictRequest, names: Sequence[str]
) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    """The request's columns for the features called `names`, as (items, user).

    Raises:
        BadRequest: naming the first feature whose column does not hold together.
    """
    for name in names:
        if name in request.items and name in request.user:
            raise BadRequest(name, "is given both for the user and for the items; give it once")
    items = {n: from_column(n, request.items[n]) for n in names if n in request.items}
    user = {n: from_column(n, request.user[n]) for n in names if n in request.user}
    _check_rows(items, user, names)
    return _batch(items), _batch(user) if user else None


def _batch(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _check_rows(
    items: Mapping[str, pa.Array], user: Mapping[str, pa.Array], names: Sequence[str]
) -> None:
    if not items:
        raise BadRequest(
            names[0],
            "is not among the items, nor is any other feature, so the number of candidates is not "
            "known; send at least one feature there",
        )
    first = next(iter(items))
    rows = len(items[first])
    for name, column in items.items():
        if len(column) != rows:
            raise BadRequest(name, f"has {len(column):,} rows, but {first!r} has {rows:,}")
    for name, column in user.items():
        if len(column) != 1:
            raise BadRequest(name, f"has {len(column):,} user rows, but a request has one user")


def from_column(name: str, column: wire.Column) -> pa.Array:
    """The wire's column as an Arrow array: int64, string, float32, or a list of them.

    Raises:
        BadRequest: bytes that are no whole numbers, lengths that do not add up to the values, a
            null that is out of range, or no values at all.
    """
    if column.HasField("lengths"):
        return _lists(name, column, _flat(name, column, "null_values"))
    if column.null_values:
        raise BadRequest(name, "has null_values but no lengths; null_rows has a column's nulls")
    return _flat(name, column, "null_rows")


def _flat(name: str, column: wire.Column, nulls: str) -> pa.Array:
    """The column's values [V], null at the places that its field `nulls` lists."""
    field = column.WhichOneof("values")
    if field is None:
        raise BadRequest(name, "has no values; set ids, strings or numbers")
    if field == "strings":
        strings = list(column.strings.values)
        return pa.array(strings, pa.string(), mask=_mask(name, column, nulls, len(strings)))
    kind, data = NUMBERS[field], getattr(column, field)
    rows = _count(name, field, data, kind.byte_width)
    if not getattr(column, nulls):
        return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(data)])
    values = np.frombuffer(data, kind.to_pandas_dtype())
    return pa.array(values, kind, mask=_mask(name, column, nulls, rows), from_pandas=False)


def _lists(name: str, column: wire.Column, values: pa.Array) -> pa.Array:
    lengths = _int32(name, "lengths", column.lengths)
    if (lengths < 0).any():
        raise BadRequest(name, f"has a length of {lengths.min()}; lengths are 0 or more")
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] != len(values):
        raise BadRequest(
            name, f"has lengths that add up to {offsets[-1]:,}, but {len(values):,} values"
        )
    nulls = _mask(name, column, "null_rows", len(lengths))
    if nulls is not None and lengths[nulls].any():
        row = int(np.flatnonzero(nulls & (lengths > 0))[0])
        raise BadRequest(name, f"has {lengths[row]:,} values in row {row:,}, which is null")
    mask = None if nulls is None else pa.array(nulls)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, mask=mask)


def _mask(name: str, column: wire.Column, field: str, size: int) -> np.ndarray | None:
    """True at each place that the field lists: bool [size]; None where it lists none."""
    if not getattr(column, field):
        return None
    places = _int32(name, field, getattr(column, field))
    outside = places[(places < 0) | (places >= size)]
    if len(outside):
        raise BadRequest(name, f"has {outside[0]} in {field}, but places are 0 to {size - 1:,}")
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask


def _int32(name: str, field: str, data: bytes) -> np.ndarray:
    _count(name, field, data, 4)
    return np.frombuffer(data, "<i4")


def _count(name: str, field: str, data: bytes, width: int) -> int:
    if len(data) % width:
        raise BadRequest(
            name, f"has {len(data):,} bytes in {field}, which is no multiple of {width}"
        )
    return len(data) // width
