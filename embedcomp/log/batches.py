"""The stream of batches that training and evaluation read."""

from __future__ import annotations

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

Taught = Callable[[Piece], np.ndarray]  # a teacher's logits of a piece's rows, float16 [rows]

BUFFER_BYTES = 1 << 29  # of encoded rows that are shuffled together


@dataclass(frozen=True)
class Batch:
    """What a model reads: dense float32 [B, D], sparse ids by feature name, labels float32 [B], and
    a teacher's logits float32 [B] where it imitates one.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    labels: Tensor
    taught: Tensor | None = None

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
    taught = None if rows.taught is None else torch.from_numpy(rows.taught.astype(np.float32))
    return Batch(torch.from_numpy(rows.dense), sparse, torch.from_numpy(rows.labels), taught)


def made_up_row(features: Features) -> Batch:
    """A batch of one row with dense features of 0 and the first id in every column."""
    ids = len(features.keys)
    sparse = KeyedJaggedTensor(
        keys=features.keys,
        values=torch.zeros(ids, dtype=torch.int64),
        lengths=torch.ones(ids, dtype=torch.int64),
        stride=1,
    )
    return Batch(torch.zeros(1, len(features.dense)), sparse, torch.zeros(1))


def read_rows(
    log: ClickLog, features: Features, pieces: Iterable[Piece], taught: Taught | None = None
) -> Iterator[Rows]:
    """Encoded rows of the pieces, in order, a few ten thousand at a time.

    Args:
        taught: gives a teacher's logits of a piece's rows.
    """
    for piece in pieces:
        logits, done = None if taught is None else taught(piece), 0
        for batch in log.read(piece):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            rows = features.encode(columns, batch.num_rows)
            known = None if logits is None else logits[done : done + len(rows)]
            done += len(rows)
            yield replace(rows, labels=columns[log.schema.label].to_numpy(), taught=known)


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
            read = piece.part(0, min(rows_per_piece or piece.rows, piece.rows))
            for rows in _cut(read_rows(log, features, [read]), batch_rows):
                yield to_batch(rows, features.keys)

    return prefetched(batches)


def _cut(source: Iterator[Rows], batch_rows: int) -> Iterator[Rows]:
    """Whole batches, then what is left."""
    held: Rows | None = None
    for read in source:
        rows = read if held is None else Rows.concatenate([held, read])
        end = len(rows) - len(rows) % batch_rows
        for start in range(0, end, batch_rows):
            yield rows.take(np.arange(start, start + batch_rows))
        held = rows.take(np.arange(end, len(rows)))
    if held is not None and len(held):
        yield held


class Shuffled:
    """Passes over pieces in random order: pieces in random order through a buffer of rows.

    A log sorted by time trains as well as a shuffled one only as far as the buffer mixes its times,
    so the buffer is as large as BUFFER_BYTES allow. A log that fits it is read once and kept.

    Args:
        buffer_rows: rows that are shuffled together; None: as many as BUFFER_BYTES hold.
        taught: gives a teacher's logits of a piece's rows, which then come with the batches.
    """

    def __init__(
        self,
        log: ClickLog,
        features: Features,
        pieces: Sequence[Piece],
        batch_rows: int,
        buffer_rows: int | None = None,
        taught: Taught | None = None,
    ):
        self._log, self._features, self._taught = log, features, taught
        self._pieces, self._batch_rows = pieces, batch_rows
        self._buffer_rows = buffer_rows or self._rows_that_fit()
        self._whole: Rows | None = None

    def batches(self, seed: Sequence[int], skip: int = 0) -> Iterator[Batch]:
        """One pass; equal `seed`s give equal batches. Only the last batch may be short.

        Args:
            seed: entropy of this pass, say (run's seed, epoch).
            skip: batches at the start that are not given out: where a resumed run goes on.
        """

        def one_pass() -> Iterator[Batch]:
            rng = np.random.default_rng(list(seed))
            taken = 0
            for buffer in self._buffers(rng):
                places = rng.permutation(len(buffer))
                for start in range(0, len(buffer), self._batch_rows):
                    if taken >= skip:
                        rows = buffer.take(places[start : start + self._batch_rows])
                        yield to_batch(rows, self._features.keys)
                    taken += 1

        return prefetched(one_pass)

    def _buffers(self, rng: np.random.Generator) -> Iterator[Rows]:
        """Buffers of whole batches; what does not fill a batch moves on to the next buffer."""
        if sum(piece.rows for piece in self._pieces) <= self._buffer_rows:
            if self._whole is None:
                self._whole = Rows.concatenate(list(self._read(self._pieces)))
            yield self._whole
            return
        parts: list[Rows] = []
        held = 0
        for rows in self._read([self._pieces[i] for i in rng.permutation(len(self._pieces))]):
            parts.append(rows)
            held += len(rows)
            if held >= self._buffer_rows:
                gathered = Rows.concatenate(parts)
                end = held - held % self._batch_rows
                parts, held = [gathered.part(end, held)], held - end
                yield gathered.part(0, end)
        if held:  # at the end of the pass
            yield Rows.concatenate(parts)

    def _read(self, pieces: Iterable[Piece]) -> Iterator[Rows]:
        return read_rows(self._log, self._features, pieces, self._taught)

    def _rows_that_fit(self) -> int:
        """By the size of the first rows read, which a resumed run sees too."""
        first = next(self._read(self._pieces))
        return max(1, BUFFER_BYTES * len(first) // max(first.nbytes, 1))


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
