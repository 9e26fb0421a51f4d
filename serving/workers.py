"""Several processes that serve one port, and their parent, which replaces those that die.

The kernel spreads connections over them. Artifacts and known ids are mapped files, which are in
memory once for all. Where a call changes what is served, the parent has all others change it too.
Workers are forked from a process that has imported what they run and does nothing else, so that one
that takes another's place does not take the cores of those that serve.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from embedcomp.errors import EmbedcompError
from embedcomp.serving.errors import CannotListen, WorkersDie
from embedcomp.serving.settings import METRICS_FOLDER, ServerSettings

if TYPE_CHECKING:
    from embedcomp.scorer.scorer import Scorer

AT_ONCE_S = 10.0  # a worker that ends sooner after its start is taken to be unable to serve
TRIES = 3  # workers that end at once, one after the other, while none serves, before it gives up
LATER_S = 1.0  # until a worker that ended at once is replaced, twice as long each further time
LATEST_S = 30.0
CHANGED_S = 60.0  # longest that the others are waited for when versions change
LATE_S = 5.0  # that a worker has beyond its grace time before it is killed
IMPORTED = [  # before workers are forked; what is not installed is left out
    "embedcomp.cli.main",  # multiprocessing runs the program's first module in each of them
    "embedcomp.engine.standalone",
    "embedcomp.scorer.by_engine",
    "embedcomp.scorer.scorer",
    "embedcomp.serving.repository",
    "embedcomp.serving.server",
    "pandas",  # which pyarrow imports where it is there
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What a call changes: a version of a model that is served, or None, which is none of them."""

    name: str
    version: int | None


# What parent and workers tell each other.


@dataclass(frozen=True)
class Ready:
    """A worker serves, and this is to be printed of it."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """A worker cannot serve, which is for the user to mend."""

    why: str


@dataclass(frozen=True)
class Changed:
    """A worker was asked for a change and made it."""

    number: int
    change: Change


@dataclass(frozen=True)
class Make:
    """A worker is to make a change that another one was asked for."""

    number: int
    change: Change


@dataclass(frozen=True)
class Made:
    """A change was made by all, or by this worker; or it was not, and why."""

    number: int
    errors: tuple[str, ...] = ()


def serve_by_workers(
    paths: list[Path], settings: ServerSettings, opened: Callable[[Path], Scorer]
) -> None:
    """Serve by `settings.workers` processes until SIGTERM or SIGINT. For the main thread.

    Raises:
        CannotListen: the address is taken.
        EmbedcompError: a worker cannot serve what is there.
        WorkersDie: one worker after the other ended at once.
    """
    with (
        tempfile.TemporaryDirectory(prefix="embedcomp-metrics-") as folder,
        _reserved(settings) as reserved,
    ):
        os.environ[METRICS_FOLDER] = folder
        _Workers(paths, reserved, opened).run()


@contextmanager
def _reserved(settings: ServerSettings) -> Iterator[ServerSettings]:
    """Settings with the ports that are free, which no other server gets meanwhile."""
    with _held(settings.host, settings.port) as port:
        if settings.metrics_port is None:
            yield replace(settings, port=port)
            return
        with _held(settings.host, settings.metrics_port) as metrics_port:
            yield replace(settings, port=port, metrics_port=metrics_port)


@contextmanager
def _held(host: str, port: int) -> Iterator[int]:
    """A port that workers can share; it gets no connection itself, since it does not listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as alone:  # fails where another server shares its port
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
        with socket.socket(family) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, port))
            yield held.getsockname()[1]
    except OSError as error:
        raise CannotListen(host, port) from error


def pause_s(died_at_once: int) -> float:
    """Seconds until a worker is replaced, after so many in a row ended as they began."""
    return min(LATER_S * 2 ** (died_at_once - 1), LATEST_S) if died_at_once else 0.0


@dataclass(eq=False)
class _Worker:
    """A process, the way to it, and what it said of itself."""

    process: BaseProcess
    link: Connection
    began: float = field(default_factory=time.monotonic)
    lines: tuple[str, ...] | None = None  # once it serves

    def tell(self, what: object) -> None:
        with suppress(OSError):  # it has ended, which is seen elsewhere
            self.link.send(what)


@dataclass
class _Asked:
    """A change that a worker was asked for, its number there, and who has yet to make it."""

    by: _Worker
    number: int
    waited: set[_Worker]
    errors: list[str] = field(default_factory=list)


class _Workers:
    """The parent's part."""

    def __init__(
        self, paths: list[Path], settings: ServerSettings, opened: Callable[[Path], Scorer]
    ):
        from prometheus_client import CollectorRegistry, Counter

        self._context = get_context("forkserver")
        self._given = paths, settings, opened
        self._settings = settings
        self._workers: list[_Worker] = []
        self._changes: dict[str, Change] = {}  # the latest of each model, for those that come anew
        self._asked: dict[int, _Asked] = {}
        self._numbers = itertools.count()
        self._died_at_once = 0
        self._due: list[float] = []  # when workers are to be started
        self._told = False
        self._restarts = Counter(
            "embedcomp_worker_restarts",
            "Workers that were started in another's place.",
            registry=CollectorRegistry(),
        )

    def run(self) -> None:
        """Serve until a signal comes."""
        context = self._context
        context.set_forkserver_preload(IMPORTED)
        asked_to_stop, stop = context.Pipe(duplex=False)
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {s: signal.signal(s, lambda number, _: stop.send(number)) for s in signals}
        try:
            for _ in range(self._settings.workers):
                self._start()
            while not asked_to_stop.poll():
                links = {worker.link: worker for worker in self._workers}
                left = min(self._due) - time.monotonic() if self._due else None
                for link in wait([asked_to_stop, *links], left and max(left, 0.0)):
                    if link in links:
                        self._hear(links[link])
                self._start_due()
            name = signal.Signals(asked_to_stop.recv()).name
            print(f"{name}: finishing calls in flight", flush=True)
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        given = (*self._given, tuple(self._changes.values()), theirs)
        process = self._context.Process(target=_work, args=given, name="worker")
        process.start()
        theirs.close()  # so that its end is seen here
        self._workers.append(_Worker(process, ours))

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.link.recv()
        except (EOFError, OSError):
            self._ended(worker)
            return
        if isinstance(said, Ready):
            worker.lines = said.lines
            self._tell_once()
        elif isinstance(said, Failed):
            if not self._told:  # it is the user's to mend; later, others serve on
                raise EmbedcompError(said.why)
            logger.error("a worker cannot serve: %s", said.why)
        elif isinstance(said, Changed):
            self._changes[said.change.name] = said.change
            others = [one for one in self._workers if one is not worker]
            number = next(self._numbers)
            serving = {
                one for one in others if one.lines is not None
            }  # who begins is not waited for
            self._asked[number] = _Asked(worker, said.number, serving)
            for one in others:
                one.tell(Make(number, said.change))
            self._settle()
        elif isinstance(said, Made) and said.number in self._asked:
            asked = self._asked[said.number]
            asked.waited.discard(worker)
            asked.errors.extend(said.errors)
            self._settle()

    def _settle(self) -> None:
        """Tell who asked for changes that all have made them."""
        for number, asked in list(self._asked.items()):
            if not asked.waited:
                del self._asked[number]
                asked.by.tell(Made(asked.number, tuple(asked.errors)))

    def _tell_once(self) -> None:
        """Print what is served, once all workers do."""
        if self._told or any(worker.lines is None for worker in self._workers):
            return
        self._told = True
        for line in self._workers[0].lines or ():
            print(line, flush=True)
        print(f"{len(self._workers)} workers on one port", flush=True)

    def _ended(self, worker: _Worker) -> None:
        """Start another worker in an ended one's place."""
        from prometheus_client.multiprocess import mark_process_dead

        worker.process.join()
        worker.link.close()
        self._workers.remove(worker)
        mark_process_dead(worker.process.pid)
        for asked in self._asked.values():
            asked.waited.discard(worker)
        self._settle()
        code = worker.process.exitcode
        now = time.monotonic()
        at_once = code != 0 and (now - worker.began < AT_ONCE_S or worker.lines is None)
        self._died_at_once = self._died_at_once + 1 if at_once else 0
        if self._died_at_once >= TRIES and not any(one.lines for one in self._workers):
            raise WorkersDie(self._died_at_once, code)
        logger.warning(
            "worker %s ended (%s); another one takes its place", worker.process.pid, code
        )
        self._due.append(now + pause_s(self._died_at_once))

    def _start_due(self) -> None:
        """Start workers in the place of others, once it is time."""
        now = time.monotonic()
        for due in [due for due in self._due if due <= now]:
            self._due.remove(due)
            self._restarts.inc()
            self._start()

    def _stop(self) -> None:
        """End all workers; each finishes its calls, if it does so in time."""
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + self._settings.grace_s + LATE_S
        for worker in self._workers:
            worker.process.join(max(until - time.monotonic(), 0))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


# A worker's part.


def _work(
    paths: list[Path],
    settings: ServerSettings,
    opened: Callable[[Path], Scorer],
    changes: Iterable[Change],
    link: Connection,
) -> None:
    from embedcomp.serving.repository import Repository
    from embedcomp.serving.server import serve

    said = _Link(link)

    def ready() -> Repository:
        repository = Repository(paths, settings, opened)
        for change in changes:
            repository.change(change.name, change.version)
        repository.tell_others = said.changed
        said.listen(repository)
        return repository

    try:
        serve(ready, settings, lambda lines: said.tell(Ready(tuple(lines))))
    except EmbedcompError as error:
        said.tell(Failed(str(error)))
        raise SystemExit(2) from error


class _Link:
    """The way to the parent."""

    def __init__(self, link: Connection):
        self._link = link
        self._sending, self._changing = threading.Lock(), threading.Lock()
        self._made: SimpleQueue[Made] = SimpleQueue()
        self._numbers = itertools.count()

    def tell(self, what: object) -> None:
        with self._sending, suppress(OSError):  # the parent has ended, which `listen` sees
            self._link.send(what)

    def changed(self, name: str, version: int | None) -> None:
        """Have all other workers make a change that this one made.

        Raises:
            WorkersDiffer: one of them cannot, or takes too long.
        """
        from embedcomp.serving.errors import workers_differ

        with self._changing:
            number = next(self._numbers)
            self.tell(Changed(number, Change(name, version)))
            until = time.monotonic() + CHANGED_S
            while True:
                try:
                    made = self._made.get(timeout=max(until - time.monotonic(), 0.0))
                except Empty:
                    raise workers_differ(f"they took more than {CHANGED_S:.0f} s") from None
                if made.number == number:
                    break
        if made.errors:
            raise workers_differ("; ".join(made.errors))

    def listen(self, repository: Any) -> None:
        """Do what the parent says, in a thread; stop when there is no parent any more."""

        def listen() -> None:
            while True:
                try:
                    said = self._link.recv()
                except (EOFError, OSError):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                if isinstance(said, Made):
                    self._made.put(said)
                else:
                    self.tell(Made(said.number, _errors_of(repository, said.change)))

        threading.Thread(target=listen, name="parent", daemon=True).start()


def _errors_of(repository: Any, change: Change) -> tuple[str, ...]:
    """Make a change; why it could not be made, if so."""
    try:
        repository.change(change.name, change.version)
    except EmbedcompError as error:
        return (str(error),)
    return ()
