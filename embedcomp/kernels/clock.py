"""How long calls take on one thread, while other processes want the same cores.

The clock is the thread's own: it stands still while the core does something else. What is left of
other processes, which empty caches, makes calls longer and never shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

Call = Callable[[], object]
QUANTILE = 0.2  # of the turns


def turn(calls: Sequence[Call]) -> float:
    """Mean seconds of some calls, after one that brings near what they read."""
    calls[0]()
    began = time.thread_time()
    for call in calls:
        call()
    return (time.thread_time() - began) / len(calls)


def in_turns(contenders: Sequence[Sequence[Call]], seconds: float, fewest: int) -> np.ndarray:
    """Seconds of each contender's call, turn by turn: [turns, contenders].

    They take turns, so that what slows the machine down for a while slows all of them.

    Args:
        contenders: the calls of each.
        seconds: that are measured, in all.
        fewest: turns, however long they take.
    """
    found: list[list[float]] = []
    began = time.perf_counter()
    while len(found) < fewest or time.perf_counter() - began < seconds:
        found.append([turn(calls) for calls in contenders])
    return np.array(found)


def low(seconds: Sequence[float] | np.ndarray) -> float:
    """Microseconds of a call, from the seconds of its turns."""
    return 1e6 * float(np.quantile(seconds, QUANTILE))
