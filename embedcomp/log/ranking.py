"""Ids in the order of a vocabulary: most frequent first, equal counts by value."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcomp.log.stored import COUNT, VALUE, Part, Store

ORDER = [(COUNT, "descending"), (VALUE, "ascending")]

Run = Sequence[pa.Table | Part]  # blocks of ids in that order, one after another


class Ranked(NamedTuple):
    """The ids of a column that were seen often enough.

    values: in order; counts: int64, parallel to them; rare: how often all others were seen.
    """

    values: pa.Array
    counts: np.ndarray
    rare: int


def rank(counts: pa.Table, min_count: int, store: Store | None) -> tuple[Run, int]:
    """The ids seen at least `min_count` times, in order, and how often all others were seen.

    Args:
        store: where they wait to be merged with others; None: in memory.
    """
    often = counts.filter(pc.greater_equal(counts[COUNT], min_count)).sort_by(ORDER)
    rare = _sum(counts) - _sum(often)
    if store is None:
        return [often], rare
    with store.writing() as writer:
        return writer.in_order(often), rare


def merged(runs: Sequence[Run]) -> Iterator[pa.Table]:
    """Blocks of the ids of all runs, each in order, in the order of all. Of each run, one block is
    held.
    """
    rest = [map(_read, run) for run in runs]
    heads = {place: block for place, run in enumerate(rest) if (block := _next(run)) is not None}
    while heads:
        # what comes before the first of the blocks' ends is in blocks that have been read
        end = min(_key(block, block.num_rows - 1) for block in heads.values())
        ready = []
        for place, block in list(heads.items()):
            until = bisect_right(range(block.num_rows), end, key=partial(_key, block))
            ready.append(block.slice(0, until))
            left = block.slice(until) if until < block.num_rows else _next(rest[place])
            if left is None:
                del heads[place]
            else:
                heads[place] = left
        yield ready[0] if len(runs) == 1 else pa.concat_tables(ready).sort_by(ORDER)


def frequencies(counts: pa.Table) -> np.ndarray:
    """How many ids were seen so often: int64 [k, 2], numbers of times and of ids."""
    times, ids = np.unique(counts[COUNT].to_numpy(), return_counts=True)
    return np.stack([times, ids], axis=1)


def _sum(counts: pa.Table) -> int:
    return pc.sum(counts[COUNT]).as_py() or 0


def _read(block: pa.Table | Part) -> pa.Table:
    return block.read() if isinstance(block, Part) else block


def _next(run: Iterator[pa.Table]) -> pa.Table | None:
    """The next block that has a row."""
    return next((block for block in run if block.num_rows), None)


def _key(block: pa.Table, row: int) -> tuple[int, Any]:
    return -block[COUNT][row].as_py(), block[VALUE][row].as_py()
