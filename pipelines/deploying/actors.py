"""What Ray keeps running: a shard or a front in an actor's own process, and nothing of Ray in
between when they talk to each other.
"""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray.util import get_node_ip_address

from embedcomp.errors import BadArtifact, EmbedcompError
from embedcomp.pipelines.deploying.asking import Told, asked, shards_of, where
from embedcomp.pipelines.deploying.names import FrontName, ShardName, chosen, generations
from embedcomp.pipelines.deploying.settings import of_shards
from embedcomp.serving.settings import ServerSettings
from embedcomp.serving.shards.server import ShardServer, Versions

if TYPE_CHECKING:  # a shard does without
    from embedcomp.scorer.scorer import Scorer
    from embedcomp.serving.repository import Repository
    from embedcomp.serving.server import ScoringServer

AGAIN_S = 1.0  # from one look at what is to be done to the next

logger = logging.getLogger(__name__)


class Kept(ABC):
    """Something that serves, and is tried again until it does.

    It begins in a thread: Ray gives up an actor that fails to begin, also where it was to start it
    again after it had served for long.
    """

    def __init__(self, path: str, host: str | None):
        self._path = Path(path)
        self._at = get_node_ip_address()
        self._host = host or self._at
        self._why = ""
        self._stopped = threading.Event()
        threading.Thread(target=self._keep, name="keep", daemon=True).start()

    @abstractmethod
    def told(self) -> Told:
        """What it is, and whether it serves."""

    @abstractmethod
    def _look(self) -> None:
        """Do what is to be done, if anything is."""

    def _keep(self) -> None:
        while True:
            try:
                if not self._path.exists():
                    raise BadArtifact(f"there is no {self._path}")
                self._look()
                self._why = ""
            except Exception as error:  # whatever it is may be over at the next look
                known = isinstance(error, (EmbedcompError, OSError))
                why = str(error) if known else f"{type(error).__name__}: {error}"
                if why != self._why:
                    logger.warning("%s", why, exc_info=not known)
                self._why = why
            if self._stopped.wait(AGAIN_S):
                return


class Shard(Kept):
    """A shard's slots, as `embedcomp shard` serves them, on a free port."""

    def __init__(self, name: ShardName, path: str, host: str | None, of_fronts: ServerSettings):
        self._name, self._of_fronts = name, of_fronts
        self._server: ShardServer | None = None
        super().__init__(path, host)

    def told(self) -> Told:
        server = self._server
        metrics = None if server is None else server.metrics_port
        return Told(
            host=self._at,
            pid=os.getpid(),
            address=None if server is None else f"{self._host}:{server.port}",
            metrics=None if metrics is None else f"{self._host}:{metrics}",
            why=self._why,
            path=str(self._path),
            versions=() if server is None else tuple(sorted(server.held.loaded, reverse=True)),
            streams=0 if server is None else server.held.streams,
        )

    def _look(self) -> None:
        if self._server is None:
            settings = of_shards(self._of_fronts, self._host)
            held = Versions(self._path, self._name.slots, settings.lookups)
            self._server = ShardServer(held, settings)


class Front(Kept):
    """The ordinary server, whose shards are those that Ray lists."""

    def __init__(
        self,
        name: FrontName,
        path: str,
        host: str | None,
        settings: ServerSettings,
        precision: str | None,
    ):
        self._name, self._given, self._precision = name, settings, precision
        self._generation: int | None = None
        self._shards: list[ShardName] = []
        self._server: ScoringServer | None = None
        self._repository: Repository | None = None
        super().__init__(path, host)

    def told(self) -> Told:
        server = self._server
        metrics = None if server is None else server.metrics_port
        return Told(
            host=self._at,
            pid=os.getpid(),
            address=None if server is None else f"{self._host}:{server.port}",
            why=self._why,
            path=str(self._path),
            versions=self._versions(),
            generation=self._generation,
            metrics=None if metrics is None else f"{self._host}:{metrics}",
            settings=self._given,
        )

    def stop(self) -> None:
        """Finish calls in flight, and serve no more."""
        self._stopped.set()
        if self._server is not None and self._repository is not None:
            self._repository.stop()
            self._server.drain()

    def _versions(self) -> tuple[int, ...]:
        if self._repository is None:
            return ()
        models = self._repository.models
        current = models.current(self._name.model)
        first = 0 if current is None else current.version
        every = {one.version for one in models.loaded()}
        return tuple(sorted(every, key=lambda version: (version != first, -version)))

    def _look(self) -> None:
        """Ask the shards that there are; others than before all at once."""
        by_generation = generations(shards_of(self._name.model))
        if list(by_generation) == [self._generation]:
            return
        told = asked(name for names in by_generation.values() for name in names)
        ready = [
            name
            for name, one in told.items()
            if isinstance(name, ShardName) and isinstance(one, Told) and one.address is not None
        ]
        to = chosen(by_generation, ready, self._generation)
        if to is None:
            raise EmbedcompError("it waits for shards that have all slots")
        if to == self._generation:
            return
        before, self._shards = self._shards, by_generation[to]
        try:
            self._serve()
        except BaseException:
            self._shards = before
            raise
        self._generation = to

    def _serve(self) -> None:
        from embedcomp.serving.repository import Repository
        from embedcomp.serving.server import ScoringServer

        if self._repository is not None:
            self._repository.reopen()
            return
        settings = replace(self._given, host=self._host)
        repository = Repository([self._path], settings, partial(self._opened, settings))
        self._server = ScoringServer(repository.models, settings, repository)
        repository.keep_polling()
        self._repository = repository

    def _opened(self, settings: ServerSettings, path: Path) -> Scorer:
        """A version, with rows from the shards that are asked now."""
        from embedcomp.scorer.scorer import Scorer
        from embedcomp.serving.shards.rows import finds

        places = [where(name) for name in self._shards]
        return Scorer.open(path, precision=self._precision, shards=finds(settings, places))
