"""Choices of several layers, found in a process a core where that saves time.

Candidates of different layers have nothing in common, and each is made by thousands of small
operations, on which threads would only wait for one another. A process takes seconds to start, so
there are none where the work is done before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

import torch
from joblib import cpu_count
from joblib.externals.loky import get_reusable_executor

from embedcomp.planning.choices import (
    Choice,
    Wanted,
    found_by_method,
    seen_of,
)
from embedcomp.sensitivity.layer import Layer

WORTH_STARTING = 15.0  # seconds of CPU time that are left
WORTH_SENDING = 0.5  # seconds, where the processes are running already
IDLE = 300.0  # seconds after which a process without work ends

log = logging.getLogger(__name__)

Asked = tuple[Layer, Wanted]
Found = dict[str, list[Choice]]  # by method


def by_layer(asked: Sequence[Asked]) -> Iterator[Found]:
    """Candidates of each layer by method; how long one layer takes says how to go on.

    It is not the first one, for which libraries are loaded and what all layers share is computed.
    """
    sizes = [sum(map(len, wanted.values())) for _, wanted in asked]
    began = time.process_time()
    for place, (layer, wanted) in enumerate(asked):
        if place > 1 and _processes() > 1:
            left = sum(sizes[place:]) * (time.process_time() - began) / max(sizes[place - 1], 1)
            started = _executor.cache_info().currsize
            if left > (WORTH_SENDING if started else WORTH_STARTING):
                yield from _sent(asked[place:])
                return
        began = time.process_time()
        yield found_by_method(layer.spec, seen_of(layer), wanted)


def _sent(asked: Sequence[Asked]) -> Iterator[Found]:
    """Fronts of these layers, each found by the next process that is free.

    A process that is killed, mostly for lack of memory, takes the others with it. What they had not
    found is then found here, where one layer is in memory at a time.
    """
    tasks = [(layer.spec, seen_of(layer), wanted) for layer, wanted in asked]
    done = 0
    try:
        for found in _executor().map(found_by_method, *zip(*tasks, strict=True)):
            done += 1
            yield found
    except BrokenProcessPool:
        _executor.cache_clear()
        log.warning(
            "a planning process was killed, perhaps for lack of memory; "
            "the other %d layers are planned one after the other",
            len(tasks) - done,
        )
        for task in tasks[done:]:
            yield found_by_method(*task)


def _processes() -> int:
    """As many as there are cores, and as many as threads would be."""
    return min(torch.get_num_threads(), cpu_count())


@cache
def _executor() -> Any:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return get_reusable_executor(max_workers=_processes(), timeout=IDLE, env=one)
