"""One measured run in a process of its own, so that runs do not share memory, caches or threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[1]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ChildFailed(Exception):
    """The process ended with another code than 0; the message is the end of what it wrote."""


@dataclass(frozen=True)
class Finished:
    output: str  # standard output
    seconds: float  # wall time of the whole process
    peak_bytes: int  # largest resident memory

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON object in the last line of the output."""
        answer: dict[str, Any] = json.loads(self.output.rstrip().rpartition("\n")[2])
        return answer


def run(
    command: Sequence[str],
    *,
    python: str | Path = sys.executable,
    threads: int | None = None,
    shown: bool = False,
) -> Finished:
    """Run `python -m command...` from the repository's root.

    Args:
        threads: of every BLAS and OpenMP pool; the process may also use no more cores than that.
        shown: its progress and errors go to this process's standard error.

    Raises:
        ChildFailed: it ended with another code than 0.
    """
    variables = {} if threads is None else {name: str(threads) for name in _THREAD_VARIABLES}
    began = perf_counter()
    with _kept_to(threads):
        process = subprocess.Popen(
            [str(python), "-m", *command],
            cwd=ROOT,
            env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.STDOUT,
            text=True,
        )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = perf_counter() - began
    if process.returncode:
        raise ChildFailed(" ".join(output[-2000:].split()) or f"code {process.returncode}")
    return Finished(output, seconds, usage.ru_maxrss * 1024)


@contextmanager
def _kept_to(cores: int | None) -> Iterator[None]:
    """Processes started meanwhile may use the first so many cores only; None: all."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def answer(**values: Any) -> None:
    """Print what the parent reads as Finished.answer."""
    print("\n" + json.dumps(values), flush=True)
