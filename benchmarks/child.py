"""One measured run in a process of its own, so that runs do not share memory, caches or threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[1]
# A process's peak memory begins with that of the one it was started from, so a small one stands in
# between: it runs the command and writes the peak, in KiB, into a file.
_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code if code >= 0 else 128 - code)
"""
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
    with tempfile.NamedTemporaryFile("r") as peak, _kept_to(threads):
        done = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCHER, peak.name, str(python), "-m", *command],
            cwd=ROOT,
            env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds, written = perf_counter() - began, peak.read()
    if done.returncode:
        end = " ".join(done.stdout[-2000:].split())
        raise ChildFailed(end or f"code {done.returncode}")
    return Finished(done.stdout, seconds, int(written) * 1024)


@contextmanager
def _kept_to(cores: int | None) -> Iterator[None]:
    """Processes started in the block may use the first `cores` cores only; None: all."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def answer(**values: Any) -> None:
    """Print what the parent reads as Finished.answer."""
    print("\n" + json.dumps(values), flush=True)


def memory(pid: int) -> dict[str, int]:
    """Bytes that a process holds by kind: "Rss" has shared pages whole, "Pss" its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    parts = [line.split() for line in lines]
    return {part[0].rstrip(":"): int(part[1]) * 1024 for part in parts}
