"""Choices of several layers, found in a process a core where that saves time.

Candidates of different layers have nothing in common, and each is made by thousands of small
operations, on which threads would only wait for one another. A process takes seconds to start, so
there are none where the work is done before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from joblib.externals.loky import get_reusable_executor

from embedcomp.kernels.threads import cores
from embedcomp.planning.choices import (
    TOGETHER,
    Choice,
    Wanted,
    found_by_method,
    seen_of,
    spared,
)
from embedcomp.sensitivity.layer import Layer, Spec
from embedcomp.support.progress import Counter, Watch, quiet

WORTH_STARTING = 15.0  # seconds of CPU time that are left
WORTH_SENDING = 0.5  # seconds, where the processes are running already
MANY = 32  # candidates, which take about as long
LOTS = 3000  # candidates, which take twice as long as what is worth starting processes
IDLE = 300.0  # seconds after which a process without work ends
LOOK_S = 0.5  # between two looks at how far the processes are

log = logging.getLogger(__name__)

Asked = tuple[Layer, Wanted]
Found = dict[str, list[Choice]]  # by method


def by_layer(
    asked: Sequence[Asked], watch: Watch = quiet, sparing: bool = False
) -> Iterator[Found]:
    """Candidates of each layer by method; how long one layer takes says how to go on.

    It is not the first one, for which libraries are loaded and what all layers share is computed.
    Processes get all layers at once if they are running already and there are many candidates, in
    parts where there are fewer layers than processes; so they do where there are lots.

    Args:
        sparing: leave out the candidates that `spared` does.
    """
    if not asked:
        return
    sizes = [_size(wanted) for _, wanted in asked]
    counter = Counter(watch, "planning", sum(sizes), "candidates")
    started = cores() > 1 and _executor.cache_info().currsize
    if cores() > 1 and sum(sizes) > (MANY if started else LOTS):
        parts = -(-cores() // len(asked))  # of a layer, so that no process is idle
        split = [(layer, part) for layer, wanted in asked for part in _parts(wanted, parts)]
        found = _sent(split, counter, sparing=sparing)
        for layer, wanted in asked:
            joined = _joined(wanted, list(islice(found, parts)))
            yield _spared_of(layer.spec, wanted, joined) if sparing and parts > 1 else joined
        return
    began = time.process_time()
    for place, (layer, wanted) in enumerate(asked):
        if place > 1 and cores() > 1:
            left = sum(sizes[place:]) * (time.process_time() - began) / max(sizes[place - 1], 1)
            if left > (WORTH_SENDING if started else WORTH_STARTING):
                yield from _sent(asked[place:], counter, sum(sizes[:place]), sparing=sparing)
                return
        began = time.process_time()
        yield _found_here(layer.spec, seen_of(layer, wanted), wanted, counter, sparing)


def _parts(wanted: Wanted, number: int) -> list[Wanted]:
    """As many parts of a layer's candidates, each with some of every method.

    Those that `spared` weighs against each other stay together.
    """
    return [
        {
            name: [s for place, s in enumerate(some) if place // TOGETHER % number == part]
            for name, some in wanted.items()
        }
        for part in range(number)
    ]


def _joined(wanted: Wanted, parts: Sequence[Found]) -> Found:
    """The parts' choices in the order in which they were wanted, or in that of a single part."""
    if len(parts) == 1:
        return parts[0]
    choices = {name: _by_settings(c for part in parts for c in part[name]) for name in wanted}
    return {
        name: [choices[name][s] for s in some if s in choices[name]]
        for name, some in wanted.items()
    }


def _spared_of(spec: Spec, wanted: Wanted, found: Found) -> Found:
    """What would have been made in one part, which is no more than what was."""
    choices = {name: _by_settings(some) for name, some in found.items()}
    return {name: spared(name, some, spec, choices[name].get) for name, some in wanted.items()}


def _by_settings(found: Iterable[Choice]) -> dict[Any, Choice]:
    return {choice.settings: choice for choice in found}


def _size(wanted: Wanted) -> int:
    return sum(map(len, wanted.values()))


def _found_here(spec: Spec, seen: Layer, wanted: Wanted, counter: Counter, sparing: bool) -> Found:
    size, done = _size(wanted), 0
    counter.at(f"{spec.name}: 0 of {size}")

    def add(number: int) -> None:
        nonlocal done
        done += number
        counter.add(number, f"{spec.name}: {done} of {size}")

    return found_by_method(spec, seen, wanted, add, sparing=sparing)


def _sent(
    asked: Sequence[Asked], counter: Counter, before: int = 0, *, sparing: bool = False
) -> Iterator[Found]:
    """Fronts of these layers, each found by the next process that is free.

    Args:
        before: candidates of other layers that were counted already.

    A process that is killed, mostly for lack of memory, takes the others with it. What they had not
    found is then found here, where one layer is in memory at a time.
    """
    tasks = [(layer.spec, seen_of(layer, wanted), wanted) for layer, wanted in asked]
    done = 0
    try:
        for found in _from_processes(tasks, counter, before, sparing=sparing):
            done += 1
            yield found
    except BrokenProcessPool:
        _executor.cache_clear()
        log.warning(
            "a planning process was killed, perhaps for lack of memory; "
            "the other %d layers are planned one after the other",
            len(tasks) - done,
        )
        counter.reach(before + sum(_size(wanted) for _, _, wanted in tasks[:done]))
        for task in tasks[done:]:
            yield _found_here(*task, counter, sparing)


def _from_processes(
    tasks: Sequence[tuple[Spec, Layer, Wanted]],
    counter: Counter,
    before: int,
    *,
    sparing: bool = False,
) -> Iterator[Found]:
    """What processes find, which count their candidates in a file that all of them map.

    Raises:
        BrokenProcessPool: one of them was killed.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "candidates"
        counts = np.memmap(file, np.int64, "w+", shape=len(tasks))
        futures: list[Future[Found]] = []
        try:
            for place, task in enumerate(tasks):
                futures.append(
                    _executor().submit(_found_there, found_by_method, file, place, *task, sparing)
                )
            for future in futures:
                while wait([future], LOOK_S).not_done:
                    counter.reach(before + int(counts.sum()), _at_work(tasks, counts))
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _at_work(tasks: Sequence[tuple[Spec, Layer, Wanted]], counts: np.ndarray) -> str:
    """The layers that processes are at, which take them in their order, and their candidates."""
    sizes = [_size(wanted) for _, _, wanted in tasks]
    left = [place for place, size in enumerate(sizes) if counts[place] < size]
    return ", ".join(
        f"{tasks[place][0].name}: {counts[place]} of {sizes[place]}" for place in left[: cores()]
    )


def _found_there(
    find: Callable[..., Found],
    file: Path,
    place: int,
    spec: Spec,
    seen: Layer,
    wanted: Wanted,
    sparing: bool,
) -> Found:
    counts = np.memmap(file, np.int64, "r+")

    def add(number: int) -> None:
        counts[place] += number

    return find(spec, seen, wanted, add, sparing=sparing)


@cache
def _executor() -> Any:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return get_reusable_executor(max_workers=cores(), timeout=IDLE, env=one)
