"""A server that is started by its command line, on a core of its own, and what it uses."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

from benchmarks.child import ROOT, ChildFailed
from benchmarks.served.http2 import OK, Connection

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
START_S, STOP_S = 180.0, 30.0
SERVING = "serving "  # begins the line whose last word is where
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class NotServing(ChildFailed):
    """The server did not come up; the message is the end of what it wrote."""


class Server:
    """A process and all that it starts, on some cores.

    Args:
        command: what is started.
        method, message: a call that it answers once it is up.
        log: file for what it writes.
        target: where it will listen; None: its line "serving ... HOST:PORT" says so.

    Raises:
        NotServing: it ends, or does not answer in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        method: str,
        message: bytes,
        log: Path,
        *,
        cores: Sequence[int],
        target: str | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, before = log, os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            with log.open("w") as stream:
                self._process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)} | (variables or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        finally:
            os.sched_setaffinity(0, before)
        self.pid = self._process.pid
        try:
            self.target = self._wait_for_line() if target is None else target
            self.first = self._wait_for_answer(method, message)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def embedcomp(
        cls,
        path: Path,
        method: str,
        message: bytes,
        log: Path,
        *more: str,
        cores: Sequence[int],
    ) -> Server:
        """`embedcomp serve`."""
        command = [sys.executable, "-m", "embedcomp", "serve", str(path), "--port", "0", *more]
        return cls(command, method, message, log, cores=cores)

    def pids(self) -> list[int]:
        """The process and all that come from it."""
        children: dict[int, list[int]] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and (told := _stat(int(folder.name))):
                children.setdefault(int(told[1]), []).append(int(folder.name))
        found = [self.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def workers(self) -> list[int]:
        """Its workers, which come from the process that they are forked from."""
        parents = {pid: int(told[1]) for pid in self.pids() if (told := _stat(pid))}
        return [pid for pid, parent in parents.items() if parents.get(parent) == self.pid]

    def cpu(self) -> float:
        """Seconds of CPU time, of those that have ended too."""
        told = [stat for pid in self.pids() if (stat := _stat(pid))]
        return sum(int(part) for stat in told for part in stat[11:15]) / TICKS

    def resident(self) -> int:
        """Resident bytes; what processes share is counted in each."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        return total

    def handles(self) -> int:
        """Open files and connections."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                total += len(os.listdir(f"/proc/{pid}/fd"))
        return total

    def stop(self) -> None:
        """Ask it to end, and end what is left of it after a while."""
        started = self.pids()
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        deadline = time.monotonic() + 5
        while any(_stat(pid) for pid in started[1:]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in started:
            told = _stat(pid)
            if told and told[0] != "Z":
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_for_line(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self._log.read_text().splitlines(keepends=True):
                if line.startswith(SERVING) and line.endswith("\n"):
                    return line.split()[-1]
            time.sleep(0.05)
        raise NotServing(self._end())

    def _wait_for_answer(self, method: str, message: bytes) -> bytes:
        deadline, status = time.monotonic() + START_S, "no answer"
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                status, answer = once(self.target, method, message)
            except OSError as error:
                status, answer = str(error), b""
            if status == OK:
                return answer
            time.sleep(0.5)
        raise NotServing(f"{status}: {self._end()}")

    def _end(self) -> str:
        """The end of what it wrote."""
        return " ".join(self._log.read_text()[-1500:].split()) or "it wrote nothing"


def once(target: str, method: str, message: bytes, seconds: float = 10.0) -> tuple[str, bytes]:
    """One call: its status and the answer.

    Raises:
        OSError: nobody listens there, or nobody answers in time.
    """
    line = Connection(target, method)
    with selectors.DefaultSelector() as selector, closing(line):
        selector.register(line.socket, selectors.EVENT_READ)
        line.send(message, None)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            writing = selectors.EVENT_WRITE if line.wants_to_write else 0
            selector.modify(line.socket, selectors.EVENT_READ | writing)
            selector.select(0.1)
            line.flush()
            if found := line.read():
                return found[0].status, found[0].message
        raise TimeoutError(f"{target} does not answer")


def ended_by_sigterm() -> None:
    """Have SIGTERM end this process as an exception does, so that it ends its servers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def free_port() -> int:
    """A port of this machine that nobody listens on at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
