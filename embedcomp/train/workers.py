"""What changes when several workers train one model: shares of the log and sums over workers.

Everything here is the identity in a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from embedcomp.errors import EmbedcompError
from embedcomp.log.click_log import Piece
from embedcomp.support.metrics import Quality
from embedcomp.train.rows import summed

T = TypeVar("T")


class Sharded(nn.Parameter):
    """Rows [own rows, width] of tables: row r is that of worker r % count, its r // count-th one.

    A single worker has all of them. Its gradient is the sum over all workers as it comes.
    """


def count() -> int:
    """Workers in the process group; 1 outside of one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


def wait() -> None:
    """Until every worker is here."""
    if count() > 1:
        dist.barrier()


def share(pieces: Sequence[Piece]) -> list[Piece]:
    """This worker's run of the log's rows."""
    return shares(pieces, count())[rank()]


def shares(pieces: Sequence[Piece], workers: int) -> list[list[Piece]]:
    """Each worker's pieces: runs of rows that are equally long but for one row.

    They do not keep to row groups, of which there may be fewer than workers.
    """
    rows = sum(piece.rows for piece in pieces)
    bounds = [rows * worker // workers for worker in range(workers + 1)]
    return [_between(pieces, start, end) for start, end in pairwise(bounds)]


def _between(pieces: Sequence[Piece], start: int, end: int) -> list[Piece]:
    """The rows from `start` to `end`, counted over all pieces."""
    found, before = [], 0
    for piece in pieces:
        first, last = max(start - before, 0), min(end - before, piece.rows)
        if first < last:
            found.append(piece.part(first, last))
        before += piece.rows
    return found


def weight(rows: int) -> float:
    """The share that `rows` of this worker have in the rows of all workers."""
    if count() == 1:
        return 1.0
    total = torch.tensor(float(rows))
    dist.all_reduce(total)
    return rows / float(total)


def once(make: Callable[[], T]) -> T:
    """What the first worker makes, on every worker.

    The others wait for it, so it takes no part in anything that workers do together. A user's
    mistake that it raises is raised on all of them.
    """
    if count() == 1:
        return make()
    made: list[tuple[T | None, EmbedcompError | None]] = [(None, None)]
    if rank() == 0:
        try:
            made = [(make(), None)]
        except EmbedcompError as error:
            made = [(None, error)]
    dist.broadcast_object_list(made, 0)
    value, mistake = made[0]
    if mistake is not None:
        raise mistake
    return cast(T, value)


def total(quality: Quality) -> Quality:
    """The sum of every worker's quality, on every worker."""
    first, *others = gathered(quality)
    for other in others:
        first += other
    return first


def follow_first(tensors: Iterable[Tensor]) -> None:
    """Give every worker what these tensors hold in the first one."""
    if count() > 1:
        for tensor in tensors:
            held = tensor.detach().contiguous().view(-1)
            dist.broadcast(held.view(torch.uint8), 0)  # as bytes: gloo does not know every type
            if held.data_ptr() != tensor.data_ptr():  # not received in place
                tensor.detach().copy_(held.view(tensor.shape))


def sum_into_all(tensors: Iterable[Tensor]) -> None:
    """Make each tensor the sum over workers, in place."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def sum_into_first(tensors: Sequence[Tensor]) -> None:
    """Make each of the first worker's tensors the sum over workers, and those of others zero."""
    sum_into_all(tensors)
    keep_in_first(tensors)


def keep_in_first(tensors: Iterable[Tensor]) -> None:
    """Set tensors to zero in place in all workers but the first."""
    if rank():
        for tensor in tensors:
            tensor.zero_()


def sum_gradients(parameters: Iterable[Tensor], *, sparse: bool) -> None:
    """Make every worker's gradients the sum over workers, of parameters that all of them hold.

    Args:
        sparse: gradients usually hold the rows that a worker looked up, which are gathered, not
            filled.
    """
    if count() == 1:
        return
    for parameter in parameters:
        if isinstance(parameter, Sharded):
            continue
        found = parameter.grad
        if found is None:  # not reached by this worker's batch, perhaps by another's
            found = torch.zeros_like(parameter, layout=torch.sparse_coo if sparse else None)
        if found.is_sparse:
            found = _sum_of_rows(found)
        else:
            dist.all_reduce(found)
        parameter.grad = found


def _sum_of_rows(gradient: Tensor) -> Tensor:
    """The sum of the workers' sparse gradients, which stays uncoalesced."""
    ids, values = (_rows_of_all(rows) for rows in summed(gradient))
    return torch.sparse_coo_tensor(ids[None], values, gradient.shape, check_invariants=False)


def _rows_of_all(rows: Tensor) -> Tensor:
    """Every worker's rows [n of it, ...], in the order of the workers, on every worker."""
    lengths = torch.zeros(count(), dtype=torch.int64)
    lengths[rank()] = len(rows)
    dist.all_reduce(lengths)
    padded = rows.new_zeros(int(lengths.max()), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return torch.cat([of[:length] for of, length in zip(found, lengths.tolist(), strict=True)])


def exchanged(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send each worker some rows and receive some from each, both in the order of the workers.

    Args:
        rows: [sum of sent, ...].
        sent, received: how many go to each worker, and come from each.

    Returns:
        [sum of received, ...].
    """
    found = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), received, sent)
    return found


def most(number: int) -> int:
    """The largest of all workers' numbers."""
    if count() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gathered(value: T) -> list[T]:
    """Every worker's value, in the order of the workers, on every worker."""
    if count() == 1:
        return [value]
    found: list[T | None] = [None] * count()
    dist.all_gather_object(found, value)
    return cast(list[T], found)
