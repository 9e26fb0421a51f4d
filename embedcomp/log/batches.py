"""The stream of batches that training and evaluation read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import Queue
from threading import Event, Thread
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.log.rows import Rows

T = TypeVar("T")

BUFFER_ROWS = 1 << 20  # rows that are shuffled together


@dataclass(frozen=True)
class Batch:
    """What a model reads: dense float32 [B, D], sparse ids by feature name, labels float32 [B]."""

    dense: Tensor
    sparse: KeyedJaggedTensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def to_batch(rows: Rows, keys: list[str]) -> Batch:
    """Encoded rows as tensors; `keys` are the features in the order of Features.keys."""
    b, s = rows.single.shape
    values = [rows.single.T.reshape(-1), *(bag.values for bag in rows.bags)]
    lengths = [np.ones(b * s, np.int64), *(np.diff(bag.offsets) for bag in rows.bags)]
    sparse = KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(np.concatenate(values).astype(np.int64)),
        lengths=torch.from_numpy(np.concatenate(lengths)),
        stride=b,
    )
    return Batch(torch.from_numpy(rows.dense), sparse, torch.from_numpy(rows.labels))


def read_rows(log: ClickLog, features: Features, pieces: Iterable[Piece]) -> Iterator[Rows]:
    """Encoded rows of the pieces, in order, a few ten thousand at a time."""
    for piece in pieces:
        for batch in log.read(piece):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            rows = features.encode(columns, batch.num_rows)
            yield replace(rows, labels=columns[log.schema.label].to_numpy())


def in_order(
    log: ClickLog,
    features: Features,
    pieces: Iterable[Piece],
    batch_rows: int,
    rows_per_piece: int | None = None,
) -> Iterator[Batch]:
    """Batches of the pieces in the log's own order.

    No batch spans two pieces, so what is summed over a piece does not depend on its neighbours.

    Args:
        rows_per_piece: read only so many rows of each piece.
    """

    def batches() -> Iterator[Batch]:
        for piece in pieces:
            for rows in _cut(read_rows(log, features, [piece]), batch_rows, rows_per_piece):
                yield to_batch(rows, features.keys)

    return prefetched(batches)


def _cut(source: Iterator[Rows], batch_rows: int, limit: int | None) -> Iterator[Rows]:
    """Whole batches, then what is left, of at most `limit` rows in all."""
    left = sys.maxsize if limit is None else limit
    held: Rows | None = None
    for read in source:
        wanted = read.take(np.arange(min(left, len(read))))
        left -= len(wanted)
        rows = wanted if held is None else Rows.concatenate([held, wanted])
        whole = len(rows) - len(rows) % batch_rows
        for start in range(0, whole, batch_rows):
            yield rows.take(np.arange(start, start + batch_rows))
        held = rows.take(np.arange(whole, len(rows)))
        if not left:
            break
    if held is not None and len(held):
        yield held


def shuffled(
    log: ClickLog,
    features: Features,
    pieces: Sequence[Piece],
    batch_rows: int,
    seed: Sequence[int],
    skip: int = 0,
    buffer_rows: int = BUFFER_ROWS,
) -> Iterator[Batch]:
    """Batches in random order: pieces in random order through a buffer of rows.

    A log sorted by time trains as well as a shuffled one as long as the buffer holds several
    pieces. Equal `seed`s give equal batches. Only the last batch may be short.

    Args:
        seed: entropy of this pass, say (run's seed, epoch).
        skip: batches at the start that are read but not given out: where a resumed run goes on.
    """

    def batches() -> Iterator[Batch]:
        rng = np.random.default_rng(list(seed))
        order = [pieces[i] for i in rng.permutation(len(pieces))]
        taken = 0
        for buffer in _buffers(read_rows(log, features, order), batch_rows, buffer_rows):
            places = rng.permutation(len(buffer))
            for start in range(0, len(buffer), batch_rows):
                if taken >= skip:
                    rows = buffer.take(places[start : start + batch_rows])
                    yield to_batch(rows, features.keys)
                taken += 1

    return prefetched(batches)


def _buffers(source: Iterator[Rows], batch_rows: int, buffer_rows: int) -> Iterator[Rows]:
    """Buffers of whole batches; what does not fill a batch moves on to the next buffer."""
    parts: list[Rows] = []
    held = 0
    for rows in source:
        parts.append(rows)
        held += len(rows)
        if held >= buffer_rows:
            gathered = Rows.concatenate(parts)
            whole = held - held % batch_rows
            yield gathered.take(np.arange(whole))
            parts, held = [gathered.take(np.arange(whole, held))], held - whole
    if held:  # at the end of the pass
        yield Rows.concatenate(parts)


def prefetched(source: Callable[[], Iterator[T]], depth: int = 4) -> Iterator[T]:
    """What `source` gives, made ready by a thread up to `depth` items ahead."""
    queue: Queue[tuple[bool, T | BaseException | None]] = Queue(depth)
    stop = Event()

    def fill() -> None:
        try:
            for item in source():
                queue.put((True, item))
                if stop.is_set():
                    return
            queue.put((False, None))
        except BaseException as error:  # noqa: BLE001 - raised again by the reader below
            queue.put((False, error))

    thread = Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            more, item = queue.get()
            if not more:
                if item is not None:
                    raise item  # type: ignore[misc]
                return
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        while not queue.empty():
            queue.get_nowait()
