"""Workers of one process group, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LONGEST = timedelta(minutes=2)  # that one waits for another, who may have failed
# imported once for the workers of all tests, which are copies of a process that has done so
HEAVY = ["embedcomp.recipes.training", "embedcomp.swapping.swap"]


def in_two_workers(work: Callable[..., None], *given: Any) -> None:
    """Run `work(rank, *given)` in both and wait until they end."""
    in_workers(2, work, *given)


def in_workers(count: int, work: Callable[..., None], *given: Any) -> None:
    """Run `work(rank, *given)` in each and wait until they end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(HEAVY)
    started = port, count, work, given
    mp.start_processes(_worker, started, nprocs=count, start_method="forkserver")


def _worker(
    rank: int, port: int, count: int, work: Callable[..., None], given: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=count, timeout=LONGEST
    )
    work(rank, *given)
    dist.destroy_process_group()
