"""Tables of which each of several workers holds, reads and moves a share of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from embedcomp.errors import BadSettings
from embedcomp.support.files import replacing
from embedcomp.train import workers
from embedcomp.train.rows import distinct
from embedcomp.train.tables import FlatTables, swap_in

SENT_BYTES = 1 << 24  # of rows at a time, where tables become whole again


@dataclass(frozen=True)
class Route:
    """Which rows go from worker to worker for one batch.

    asks, asked: how many rows this worker reads of each, and each of this one.
    rows: int64 [sum of asked], which of its own rows those are, in the order of the workers.
    """

    asks: list[int]
    asked: list[int]
    rows: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> tuple[Self, Tensor]:
        """The route of the rows `ids` [U], and where each of these arrives [U]."""
        count = workers.count()
        owners = ids % count
        order = owners.argsort(stable=True)
        asks = owners.bincount(minlength=count)
        asked = workers.exchanged(asks, [1] * count, [1] * count)
        there, back = asks.tolist(), asked.tolist()
        rows = workers.exchanged((ids // count).index_select(0, order), there, back)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return cls(there, back, rows), places


class _Rows(torch.autograd.Function):
    """A worker's rows [own rows, width] to those that it asks for of all workers [U, width].

    Their gradients go back the same way, summed over a worker's look-ups before they leave, so the
    owner has those of all workers, in the order of the workers.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, route: Route) -> Tensor:
        ctx.route, ctx.shape = route, own.shape
        return workers.exchanged(own.index_select(0, route.rows), route.asked, route.asks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        route: Route = ctx.route
        if gradient.is_sparse:  # a row a look-up
            places, values = gradient._indices()[0], gradient._values()
            gradient = values.new_zeros(gradient.shape).index_add_(0, places, values)
        values = workers.exchanged(gradient, route.asks, route.asked)
        ids = route.rows[None]
        return torch.sparse_coo_tensor(ids, values, ctx.shape, check_invariants=False), None


class ShardedTables(FlatTables):
    """FlatTables whose `flat` are this worker's rows of all tables.

    Forward and backward passes are collective: every worker has to make as many. The collection
    is left without its tables, until they are written back.
    """

    def _taken(self, bags: Sequence[nn.EmbeddingBag]) -> Tensor:
        """One table after the other is given up, so that none is there twice."""
        count, rank = workers.count(), workers.rank()
        rows, width = sum(len(bag.weight) for bag in bags), bags[0].embedding_dim
        taken = bags[0].weight.detach().new_empty(len(range(rank, rows, count)), width)
        before = filled = 0
        for bag in bags:
            own = bag.weight.detach()[(rank - before) % count :: count]
            taken[filled : filled + len(own)] = own
            before, filled = before + len(bag.weight), filled + len(own)
            bag.weight.data = own.new_empty(0, width)
        return taken

    def _found(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        asked, places = distinct(ids)
        route, arrive = Route.of(asked)
        return arrive.index_select(0, places), _Rows.apply(self.flat, route)

    @torch.no_grad()
    def write_back_to(self, file: Path, collection: EmbeddingBagCollection) -> None:
        """Give the collection its tables as they were trained, on every worker.

        They lie in a file, which the first worker writes and all map: each may change its own, and
        none has to hold them.
        """
        sizes = [config.num_embeddings for config in self._configs]
        shape = sum(sizes), self.flat.shape[1]
        self._write(file, shape)
        whole = torch.from_numpy(np.memmap(file, self._dtype, "c", shape=shape))
        for config, rows in zip(self._configs, whole.split(sizes), strict=True):
            collection.embedding_bags[config.name].weight.data = rows

    def _write(self, file: Path, shape: tuple[int, int]) -> None:
        """Every worker's rows, which the first one receives a few at a time."""
        own = self.flat.detach()
        few = max(1, SENT_BYTES // (own.shape[1] * own.element_size()))
        if workers.rank():
            for start in range(0, len(own), few):
                dist.send(own[start : start + few], 0)
        else:
            with replacing(file) as fresh:
                whole = np.memmap(fresh, self._dtype, "w+", shape=shape)
                for worker in range(workers.count()):
                    theirs = torch.from_numpy(whole[worker :: workers.count()])
                    for start in range(0, len(theirs), few):
                        rows = theirs[start : start + few]
                        rows.copy_(own[start : start + few] if not worker else _from(worker, rows))
                whole.flush()
        workers.wait()

    @property
    def _dtype(self) -> np.dtype[Any]:
        return self.flat.detach().numpy().dtype


def _from(worker: int, rows: Tensor) -> Tensor:
    """As many rows as these, as a worker sends them."""
    received = torch.empty(rows.shape, dtype=rows.dtype)
    dist.recv(received, worker)
    return received


@contextmanager
def sharded_tables(model: nn.Module, place: Path) -> Iterator[nn.Module]:
    """Within the block, the model's collections of plain tables are shared among the workers.

    After it they are whole, in files that begin with `place`. A worker that fails leaves the block
    with the model as it is, for the others may not come to put it together.

    Raises:
        BadSettings: not all of the workers see the folder of these files.
    """
    _refuse_apart(place.parent)
    swapped = swap_in(model, ShardedTables)
    yield model
    for number, (parent, name, collection, tables) in enumerate(swapped):
        tables.write_back_to(place.with_suffix(f".{number}.tables"), collection)
        setattr(parent, name, collection)


def _refuse_apart(folder: Path) -> None:
    """Before the training, at whose end tables could not be put together."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = workers.once(lambda: folder / f".{uuid4().hex}")
    if not workers.rank():
        mark.touch()
    workers.wait()
    seen = sum(workers.gathered(mark.exists()))
    if not workers.rank():
        mark.unlink()
    if seen < workers.count():
        raise BadSettings(
            f"workers is {workers.count()}, but {seen} of them see what the first one writes to "
            f"{folder}; put it on storage that all nodes share"
        )
