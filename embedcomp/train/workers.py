"""What changes when several workers train one model: shares of the log and sums over workers.

Everything here is the identity in a single process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from embedcomp.log.click_log import Piece
from embedcomp.metrics import Quality


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
    """This worker's pieces."""
    return list(pieces[rank() :: count()])


def batches(pieces: Sequence[Piece], batch_rows: int) -> int:
    """Batches an epoch, the same for every worker: those of the one with the fewest rows."""
    shares = [sum(p.rows for p in pieces[r :: count()]) for r in range(count())]
    return -(-min(shares) // batch_rows)


def total(quality: Quality) -> Quality:
    """The sum of every worker's quality, on every worker."""
    if count() == 1:
        return quality
    parts: list[Quality | None] = [None] * count()
    dist.all_gather_object(parts, quality)
    summed = Quality()
    for part in parts:
        assert part is not None
        summed += part
    return summed


def average_gradients(model: nn.Module) -> None:
    """Make every worker's gradients the mean over workers; sparse ones are gathered, not filled."""
    if count() == 1:
        return
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:  # not reached by this worker's batch, perhaps by another's
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad.is_sparse:
            parameter.grad = _gathered(parameter.grad)
        else:
            dist.all_reduce(parameter.grad)
            parameter.grad /= count()


def _gathered(gradient: Tensor) -> Tensor:
    parts: list[tuple[Tensor, Tensor] | None] = [None] * count()
    dist.all_gather_object(parts, (gradient._indices(), gradient._values()))
    found = [part for part in parts if part is not None]
    ids = torch.cat([part[0] for part in found], dim=1)
    values = torch.cat([part[1] for part in found]) / count()
    return torch.sparse_coo_tensor(ids, values, gradient.shape)
