"""Artifacts on disk, and which of their versions the server has: opened, tried, swapped in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from embedcomp.artifact.artifact import MANIFEST, versions
from embedcomp.errors import BadArtifact, BadSettings, EmbedcompError
from embedcomp.serving.errors import Refused
from embedcomp.serving.labels import FILE, Labels
from embedcomp.serving.labels import read as read_labels
from embedcomp.serving.models import LOADING, READY, UNAVAILABLE, Models, State
from embedcomp.serving.served import Served
from embedcomp.serving.settings import ServerSettings

if TYPE_CHECKING:
    from embedcomp.scorer.scorer import Scorer

UNLOADED = "it was unloaded"

logger = logging.getLogger(__name__)


class Repository:
    """Models at some paths: an artifact NAME/VERSION, which alone is served; a model NAME, whose
    newest version is; or a folder of such models.

    A version is served once it was opened and has scored made-up rows. One that cannot be is left
    out, and what was served before goes on; at the start, the newest that can be is served. The
    version that was served before the current one stays open, to go back to.

    Args:
        opened: opens NAME/VERSION.

    Raises:
        BadArtifact: there is nothing at a path, two models have one name, or none of all that there
            is can be served.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        settings: ServerSettings,
        opened: Callable[[Path], Scorer],
    ):
        self.models = Models()
        self.tell_others: Callable[[str, int | None], None] = lambda *change: None
        self._paths, self._settings, self._opened = list(paths), settings, opened
        self._changing = threading.Lock()  # one change at a time; calls are scored meanwhile
        self._unloaded: set[str] = set()
        self._newest: dict[str, int] = {}  # version that was served; a poll takes newer ones alone
        self._tried: dict[Path, int] = {}  # broken versions, by when they were last written
        self._said: dict[Path, str] = {}  # what was logged of them, and of labels
        self._stopped = threading.Event()
        self._error: Exception | None = None  # of the last version that could not be opened
        for path in self._paths:
            folders = self._folders(path)
            if not folders:
                raise BadArtifact(
                    f"{path} holds no model: it has no {MANIFEST}, no numbered version and no "
                    "folder with one; make one with `embedcomp train` or `embedcomp compress`"
                )
        for name, folder in self._all_folders().items():
            if not self._label(name, folder).stable:
                any(self._open(place) for place in _places(folder))  # the newest that can be
        if not self.models.loaded():
            assert self._error is not None, "there was something to open"
            raise self._error

    def poll(self) -> None:
        """Look once for new versions and models, and for those that are gone."""
        with self._changing:
            for name, folder in self._all_folders().items():
                if name in self._unloaded:
                    continue
                if self._label(name, folder).stable:
                    continue  # newer ones are taken when somebody says so
                served = self._newest.get(name, 0) if self.models.current(name) else 0
                newer = (place for place in _places(folder) if int(place.name) > served)
                any(self._open(place) for place in newer)  # the newest that can be
            for one in self.models.loaded():
                self.models.tell(State(one.name, one.version, READY, _lost(one.scorer.folder)))

    def keep_polling(self) -> None:
        """Poll every so many seconds, in a thread that ends with the process or with `stop`."""

        def poll() -> None:
            while not self._stopped.wait(self._settings.poll_seconds):
                try:
                    self.poll()
                except Exception:  # a disk that fails now may be back at the next poll
                    logger.exception("looking for new versions failed")

        if self._settings.poll_seconds:
            threading.Thread(target=poll, name="poll", daemon=True).start()

    def stop(self) -> None:
        """Poll no more."""
        self._stopped.set()

    def load(self, name: str, version: int = 0) -> None:
        """Serve a model's newest version, or another one: also the way back to an older one.

        Raises:
            Refused: there is none, or it is broken; what was served before is served on.
        """
        self.tell_others(name, self._load(name, version))

    def unload(self, name: str) -> None:
        """Serve a model no more, until it is loaded again; calls in flight end on it.

        Raises:
            Refused: it is not served.
        """
        self._unload(name)
        self.tell_others(name, None)

    def change(self, name: str, version: int | None) -> None:
        """Load a version, or unload a model, as another worker did.

        Raises:
            Refused: as for `load` and `unload`.
        """
        if version is None:
            self._unload(name)
        else:
            self._load(name, version)

    def reopen(self) -> None:
        """Open anew what is served, as where its shards have moved.

        Calls in flight end on what they have. A version that was served before the current one, and
        cannot be opened any more, is dropped.

        Raises:
            EmbedcompError: a current version cannot be opened, and is served on as it was.
        """
        with self._changing:
            for one in self.models.loaded():
                current = self.models.current(one.name) is one
                try:
                    found = self._ready(one.scorer.folder)
                except EmbedcompError as error:
                    if current:
                        self.models.tell(State(one.name, one.version, READY))
                        raise
                    self.models.drop(one.name, one.version, str(error))
                else:
                    self.models.put(found, current=current)

    def _load(self, name: str, version: int) -> int:
        """Load a version; which one it was."""
        with self._changing:
            try:
                folder = self._all_folders().get(name)
            except BadArtifact as error:
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
            found = [] if folder is None else _places(folder)
            place = next((p for p in found if version in (0, int(p.name))), None)
            if place is None:
                asked = f"version {version}" if version else "any version"
                raise Refused(
                    grpc.StatusCode.NOT_FOUND, f"there is no {asked} of a model {name!r} on disk"
                )
            self._tried.pop(place, None)
            if not self._open(place):
                why = f"version {place.name} of {name!r} cannot be served: {self._error}"
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, why)
            self._unloaded.discard(name)
            return int(place.name)

    def _unload(self, name: str) -> None:
        with self._changing:
            loaded = self.models.loaded(name)
            if not name or not loaded:
                raise Refused(grpc.StatusCode.NOT_FOUND, f"no model {name!r} is served here")
            self._unloaded.add(name)
            for one in loaded:
                self.models.drop(name, one.version, UNLOADED)

    def _label(self, name: str, folder: Path) -> Labels:
        """Give a model's versions the labels in its folder; those that hold.

        Labels whose versions cannot be served, or that cannot be read, leave the old ones.
        """
        before = self.models.labels(name)
        try:
            labels = read_labels(folder)
        except BadSettings as error:
            if str(error) != self._said.get(folder / FILE):
                logger.warning("labels of %s stay as they were: %s", name, error)
            self._said[folder / FILE] = str(error)
            return before
        if labels == before and labels.versions <= self._versions(name):
            return before
        places = {int(place.name): place for place in _places(folder)}
        for version in sorted(labels.versions):
            if version not in places:
                self.models.tell(State(name, version, UNAVAILABLE, "there is none on disk"))
            elif not self._open(places[version], current=version == labels.stable):
                logger.warning("version %s of %s has a label and is not served", version, name)
        if not labels.versions <= self._versions(name):
            return before
        self.models.label(name, labels)
        logger.info("versions of %s are labelled: %s", name, labels)
        current = self.models.current(name)
        kept = labels.versions | before.versions | ({current.version} if current else set())
        for version in self._versions(name) - kept:
            self.models.drop(name, version, "it has no label any more")
        return labels

    def _versions(self, name: str) -> set[int]:
        return {one.version for one in self.models.loaded(name)}

    def _open(self, place: Path, *, current: bool = True) -> bool:
        """Serve a version, if it can be opened and scores: as the current one, or by its label."""
        name, version = place.parent.name, int(place.name)
        found = next((one for one in self.models.loaded(name) if one.version == version), None)
        written = _written(place)
        if found is None and self._tried.get(place) == written:
            return False
        try:
            found = found or self._ready(place)
        except Exception as error:  # whatever is in the folder, what was served before goes on
            known = isinstance(error, (EmbedcompError, OSError))
            said = str(error) if known else f"{type(error).__name__}: {error}"
            if not _may_pass(error):
                self._tried[place] = written
            self._error = error
            if self._said.get(place) != said:
                logger.warning("%s is not served: %s", place, said, exc_info=not known)
            self._said[place] = said
            self.models.tell(State(name, version, UNAVAILABLE, said))
            return False
        before = self.models.current(name)
        self.models.put(found, current=current)
        if not current:
            logger.info("%s is served to those who ask for it", place)
            return True
        self._newest[name] = max(version, self._newest.get(name, 0))
        kept = {version} | ({before.version} if before else set())
        kept |= self.models.labels(name).versions
        for one in self.models.loaded(name):
            if one.version not in kept:
                self.models.drop(name, one.version, f"version {version} is served")
        logger.info("%s is served", place)
        return True

    def _ready(self, place: Path) -> Served:
        """A version that has scored made-up rows."""
        self.models.tell(State(place.parent.name, int(place.name), LOADING))
        found = Served(self._opened(place), self._settings)
        found.warm_up()
        return found

    def _all_folders(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in self._paths:
            for name, folder in self._folders(path).items():
                if found.setdefault(name, folder) != folder:
                    raise BadArtifact(
                        f"{found[name]} and {folder} are both called {name!r}, and a model is "
                        "asked for by its name; serve one of them, or the folder of both versions"
                    )
        return found

    def _folders(self, path: Path) -> dict[str, Path]:
        """Models at a path by name: of an artifact the folder itself; none if it is unreadable."""
        path = path.resolve()
        if _places(path) == [path]:
            if not path.name.isdecimal():
                raise BadArtifact(
                    f"{path} is an artifact, but its folder is named by no version, and the one "
                    "above it tells the model's name; serve the folder that holds NAME/VERSION"
                )
            return {path.parent.name: path}
        if _places(path):
            return {path.name: path}
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else []
        except OSError:  # `_places` has said so
            return {}
        return {folder.name: folder for folder in inside if _places(folder)}


def _places(folder: Path) -> list[Path]:
    """The versions of a model, the newest first; an artifact is its own.

    There are none where they cannot be read, which the log says: other models are served on.
    """
    try:
        if (folder / MANIFEST).is_file():
            return [folder]
        return [folder / str(version) for version in reversed(versions(folder))]
    except OSError as error:
        logger.warning("%s cannot be read: %s", folder, error)
        return []


def _lost(folder: Path) -> str:
    """Why a version could not be opened once more; empty: it could."""
    try:
        there = (folder / MANIFEST).exists()
    except OSError as error:
        return f"its folder cannot be read ({error}); it is served from memory"
    return "" if there else "its folder is gone; it is served from memory"


def _may_pass(error: Exception) -> bool:
    """Whether a version may open the next time, though nothing of it is written until then."""
    wrong = error.__cause__ or error
    lasting = FileNotFoundError, IsADirectoryError, NotADirectoryError
    return isinstance(wrong, OSError) and not isinstance(wrong, lasting)


def _written(place: Path) -> int:
    """When anything of a version was last written or moved there; 0 where nobody can tell.

    By the time of the change of a file's entry, which a copy does not bring along.
    """
    try:
        return max(file.stat().st_ctime_ns for file in (place, *place.rglob("*")))
    except OSError:
        return 0
