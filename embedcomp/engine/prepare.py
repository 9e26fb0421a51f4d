"""What the engine reads of a request: encoded rows of a log, or a model's own inputs.

Tensors are used where they lie; torch itself is not needed to find out where that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcomp.engine.engine import Ids, Inputs
from embedcomp.engine.standalone import Standalone
from embedcomp.errors import BadRequest
from embedcomp.graph.graph import Leaf
from embedcomp.graph.inputs import leaves
from embedcomp.kernels.native import address
from embedcomp.log.features import Features
from embedcomp.log.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

IDS_IN_A_BAG = 3  # of made-up inputs


def encoded(rows: Rows, features: Features, dense: np.ndarray | None = None) -> Inputs:
    """Encoded rows as the engine takes them; the dense part is the whole model's."""
    batch, single = rows.single.shape
    values = [rows.single.T.reshape(-1), *(bag.values for bag in rows.bags)]
    lengths = [np.ones(batch * single, np.int64), *(np.diff(bag.offsets) for bag in rows.bags)]
    ids = np.concatenate(values).astype(np.int64)
    held = np.concatenate(lengths)
    dense = np.ascontiguousarray(rows.dense if dense is None else dense)
    jagged = Ids(
        address(ids), len(ids), lengths=address(held), keys=tuple(features.keys), held=(ids, held)
    )
    return Inputs(batch, {1: jagged}, [(address(dense), dense.shape[1])], held=dense)


def columns_of(
    items: pa.RecordBatch, user: pa.RecordBatch | None
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Raw columns by name, of the items and of the user.

    Raises:
        BadRequest: a column is given for both, or not for one user.
    """
    columns = dict(zip(items.schema.names, items.columns, strict=True))
    if user is None:
        return columns, {}
    theirs = dict(zip(user.schema.names, user.columns, strict=True))
    for name, column in theirs.items():
        if len(column) != 1:
            raise BadRequest(name, f"has {len(column)} user rows, but a request has one user")
        if name in columns:
            raise BadRequest(name, "is given for the user and for the items; give it once")
    return columns, theirs


@dataclass(frozen=True)
class Part:
    """One leaf of a model's inputs as arrays.

    values: float32 or int64 [B, width], or of a jagged input int64 [n], whose features are the
        leaf's keys.
    lengths, weights: of a jagged input, int64 [features * B] and float32 [n].
    """

    leaf: Leaf
    values: np.ndarray
    lengths: np.ndarray | None = None
    weights: np.ndarray | None = None


def rows_of(parts: Sequence[Part]) -> int:
    """Rows that all of some inputs have.

    Raises:
        BadRequest: they have different numbers of them.
    """
    found = {
        part.leaf.name: len(part.values)
        if part.lengths is None
        else len(part.lengths) // max(len(part.leaf.keys), 1)
        for part in parts
    }
    rows: int = next(iter(found.values()), 0)
    for name, other in found.items():
        if other != rows:
            raise BadRequest("inputs", f"{name} has {other} rows, but {next(iter(found))} {rows}")
    return rows


def from_parts(parts: Sequence[Part], leaves: Sequence[Leaf]) -> Inputs:
    """Arrays as the engine takes them.

    Raises:
        BadRequest: they have different numbers of rows.
    """
    ids: dict[int, Ids] = {}
    dense: list[tuple[int, int]] = []
    rows = rows_of(parts)
    for part in parts:
        place, values = leaves.index(part.leaf), part.values
        if part.lengths is not None:
            ids[place] = Ids(
                address(values),
                len(values),
                lengths=address(part.lengths),
                weights=0 if part.weights is None else address(part.weights),
                keys=part.leaf.keys,
            )
        elif part.leaf.kind == "dense":
            dense.append((address(values), values.shape[1]))
        else:
            ids[place] = Ids(address(values), values.size, stride=values.shape[1])
    return Inputs(rows, ids, dense, held=parts)


def prepared(inputs: Any, wanted: Sequence[Leaf]) -> Inputs:
    """A model's inputs as the engine takes them.

    Raises:
        BadRequest: they are not like the example's.
    """
    ids: dict[int, Ids] = {}
    dense: list[tuple[int, int]] = []
    held = matched(inputs, wanted)
    sizes: dict[str, int] = {}
    for place, (leaf, value) in enumerate(zip(wanted, held, strict=True)):
        if leaf.kind == "jagged":
            ids[place] = _jagged(value, leaf)
            sizes[leaf.name] = value.stride()
        elif leaf.kind != "other":
            sizes[leaf.name] = len(value)
        width = leaf.width if leaf.width is not None else 1
        if leaf.kind == "dense":
            dense.append((value.data_ptr(), width))
        elif leaf.kind == "ids":
            ids[place] = Ids(value.data_ptr(), value.numel(), stride=width)
    rows = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size != rows:
            raise BadRequest("inputs", f"{name} has {size} rows, but {next(iter(sizes))} {rows}")
    return Inputs(rows, ids, dense, (inputs, held))


def matched(inputs: Any, wanted: Sequence[Leaf]) -> list[Any]:
    """The inputs' leaves in the example's order, which mappings need not have, and of its types.

    Raises:
        BadRequest: they are not like the example's.
    """
    given = list(leaves(inputs))
    if len(given) == len(wanted) and all(
        leaf.name == name for leaf, (name, _) in zip(wanted, given, strict=True)
    ):
        return [_like(value, leaf) for leaf, (_, value) in zip(wanted, given, strict=True)]
    found = dict(given)
    names = {leaf.name: None for leaf in wanted}
    missing = [name or "a single tensor" for name in names if name not in found]
    unknown = [name or "a single tensor" for name in found if name not in names]
    if missing or unknown:
        problems = [f"lack {missing[0]}"] if missing else []
        problems += [f"have {unknown[0]}, which the example of `save` had not"] if unknown else []
        raise BadRequest("inputs", " and ".join(problems))
    return [_like(found[leaf.name], leaf) for leaf in wanted]


def _jagged(value: Any, leaf: Leaf) -> Ids:
    try:
        keys, values, weights = value.keys(), value.values(), value.weights_or_none()
        lengths, offsets = value.lengths_or_none(), value.offsets_or_none()
    except AttributeError:
        raise BadRequest("inputs", f"{leaf.name} must be a KeyedJaggedTensor") from None
    if (weights is not None) != leaf.weighted:
        raise BadRequest(
            "inputs", f"{leaf.name} must come {'with' if leaf.weighted else 'without'} weights"
        )
    values = _numbers(values, f"values of {leaf.name}", "int64")
    lengths, offsets = (
        None if t is None else _numbers(t, f"{what} of {leaf.name}", "int64")
        for what, t in (("lengths", lengths), ("offsets", offsets))
    )
    if weights is not None:
        weights = _numbers(weights, f"weights of {leaf.name}", "float32")
        if weights.numel() != values.numel():
            raise BadRequest("inputs", f"{leaf.name} has not as many weights as ids")
    stride = value.stride()
    bags = len(keys) * stride
    if (lengths is not None and lengths.numel() != bags) or (
        lengths is None and offsets is not None and offsets.numel() != bags + 1
    ):
        raise BadRequest("inputs", f"{leaf.name} does not have one bag a feature and row")
    return Ids(
        values.data_ptr(),
        values.numel(),
        lengths=0 if lengths is None else lengths.data_ptr(),
        offsets=0 if offsets is None or lengths is not None else offsets.data_ptr(),
        weights=0 if weights is None else weights.data_ptr(),
        keys=tuple(keys),
        held=(values, lengths, offsets, weights),
    )


def _like(value: Any, leaf: Leaf) -> Any:
    """The value as the example's leaf was."""
    if leaf.kind in ("jagged", "other"):
        return value
    if leaf.kind != "tensor":
        return _matrix(value, leaf)
    if not hasattr(value, "data_ptr") or not value.dim():
        raise BadRequest("inputs", f"{leaf.name} must be a tensor with the batch first")
    return value


def _matrix(value: Any, leaf: Leaf) -> Tensor:
    shape = () if leaf.width is None else (leaf.width,)
    what = "float32" if leaf.kind == "dense" else "int64"
    given = getattr(value, "shape", None)
    if not hasattr(value, "data_ptr") or not given or tuple(given[1:]) != shape:
        raise BadRequest("inputs", f"{leaf.name} must be {what} {['B', *shape]}, a tensor")
    return _numbers(value, leaf.name, what)


def _numbers(value: Any, name: str, what: str) -> Tensor:
    """A tensor as float32 or int64, one number after the other in memory.

    Raises:
        BadRequest: it has other numbers, which would be rounded, or is not where a CPU reads it.
    """
    floats = what == "float32"
    if value.is_floating_point() != floats or value.is_complex():
        raise BadRequest("inputs", f"{name} must be {what}, but is {value.dtype}")
    if not value.is_cpu or not _is_dense(value.layout):
        raise BadRequest(
            "inputs",
            f"{name} is {value.layout} on {value.device}; give a dense tensor on the CPU",
        )
    tensor: Tensor = (value.float() if floats else value.long()).contiguous()
    return tensor


@cache
def _is_dense(layout: Any) -> bool:
    """Whether it is torch's layout of numbers at equal distances, found without importing torch."""
    return str(layout) == "torch.strided"


def refuse_several(inputs: Any, alone: Standalone) -> None:
    """Rows of several users must not be scored as one's.

    Raises:
        BadRequest: a user's feature differs between rows.
    """
    dense = 0
    for leaf, value in zip(alone.leaves, matched(inputs, alone.leaves), strict=True):
        if leaf.kind == "jagged":
            differs = _differs(value, set(alone.user))
            if differs is not None:
                raise BadRequest(differs, "differs between rows, but one_user says it does not")
        elif leaf.kind == "dense":
            for column in alone.user_columns.get(dense, ()):
                if not bool((value[:, column] == value[:1, column]).all()):
                    raise BadRequest(
                        f"column {column} of {leaf.name}",
                        "differs between rows, but one_user says it does not",
                    )
            dense += 1


def _differs(sparse: Any, user: set[str]) -> str | None:
    """The first of the user's features whose bags are not all the same."""
    keys = sparse.keys()
    lengths, values = sparse.lengths().numpy().reshape(len(keys), -1), sparse.values().numpy()
    weights = sparse.weights_or_none()
    ends = lengths.sum(1).cumsum()
    if (lengths < 0).any() or ends[-1] != len(values):
        return None  # the engine refuses them
    for place, key in enumerate(keys):
        if key not in user:
            continue
        first, bags = ends[place] - lengths[place].sum(), lengths[place]
        parts = [values] if weights is None else [values, weights.numpy()]
        same = bool((bags == bags[0]).all()) and all(
            bool((rows == rows[0]).all())
            for rows in (part[first : ends[place]].reshape(len(bags), -1) for part in parts)
        )
        if not same:
            return key
    return None


def made_up(alone: Standalone, features: Features | None, rows: int, seed: int) -> list[Part]:
    """Inputs of a model that stands alone: random numbers and ids."""
    random = np.random.default_rng(seed)
    counts = {} if features is None else {f.name: f.vocabulary.counts for f in features.ids}
    sizes = {
        feature: alone.tables[table].rows
        for what in alone.look_ups
        for table, feature in zip(what.tables, what.features, strict=False)
    }
    smallest = min((table.rows for table in alone.tables.values()), default=1)
    many = set() if features is None else {feature.name for feature in features.multi}
    parts = []
    for leaf in alone.leaves:
        width = 1 if leaf.width is None else leaf.width
        if leaf.kind == "dense":
            parts.append(Part(leaf, random.standard_normal((rows, width), np.float32)))
        elif leaf.kind == "ids":
            parts.append(Part(leaf, random.integers(0, smallest, (rows, width))))
        elif leaf.kind == "jagged":
            each = [IDS_IN_A_BAG if key in many else 1 for key in leaf.keys]
            drawn = [
                _ids(random, counts.get(key), sizes.get(key, smallest), rows * n)
                for key, n in zip(leaf.keys, each, strict=True)
            ]
            values, lengths = np.concatenate(drawn), np.repeat(np.array(each), rows)
            weights = np.ones(len(values), np.float32) if leaf.weighted else None
            parts.append(Part(leaf, values, lengths, weights))
    return parts


def _ids(
    random: np.random.Generator, counts: np.ndarray | None, size: int, number: int
) -> np.ndarray:
    if counts is None or not counts.any():
        return random.integers(0, size, number)
    ends = np.cumsum(counts, dtype=np.float64)
    return np.searchsorted(ends, random.random(number) * ends[-1], side="right").astype(np.int64)
