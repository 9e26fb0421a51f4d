"""Names of the kinds of stored rows that methods choose among."""

from __future__ import annotations

from typing import Literal, get_args

from embedcomp.storage.kind import Kind

ColumnStorage = Literal[
    "column_int8",
    "column_int4",
    "column_mixed6",
    "column_mixed5",
    "column_mixed4",
    "column_mixed3",
    "column_mixed2",
]
FactorStorage = Literal["float32", "float16", ColumnStorage]  # of the factors of a low-rank layer
NestedStorage = Literal["float32", "float16", "column_int8", "column_int4"]  # whose rows begin with
# the bytes of their first columns
Storage = Literal[FactorStorage, "bfloat16", "row_int8", "row_int4", "row_int2", "symmetric_int8"]
STORAGES: tuple[Storage, ...] = get_args(Storage)
AnyStorage = Storage | Kind  # by name, or with sizes of its own
ProductBits = Literal[4, 8]
ClusteredBits = Literal[2, 3, 4, 8]
