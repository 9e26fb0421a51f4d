"""The models that are served: versions, which one answers, and what became of the others."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from embedcomp.serving.caller import Caller
from embedcomp.serving.errors import Refused
from embedcomp.serving.labels import NAMES, NONE, STABLE, Labels
from embedcomp.serving.served import Served
from embedcomp.serving.settings import ServerSettings

if TYPE_CHECKING:
    from embedcomp.scorer.scorer import Scorer


READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"


@dataclass(frozen=True)
class State:
    """Whether a version can answer, and why not."""

    name: str
    version: int
    state: str
    reason: str = ""


class Models:
    """Versions by model. A call takes one and keeps it to its end, whatever is swapped meanwhile.

    Who asks for no version gets the one that is current; others answer when they are asked for.
    """

    def __init__(self, served: Iterable[Served] = ()):
        """The newest of a model's versions is the current one."""
        self.draining = False  # the server takes no new clients any more
        self._lock = threading.Lock()  # of changes; readers see one mapping or the next
        self._current: dict[str, Served] = {}
        self._loaded: dict[tuple[str, int], Served] = {}
        self._states: dict[tuple[str, int], State] = {}
        self._labels: dict[str, Labels] = {}
        for one in sorted(served, key=lambda one: one.version):
            self.put(one)

    @classmethod
    def of(cls, settings: ServerSettings, *scorers: Scorer) -> Models:
        """Models of these versions."""
        return cls(Served(scorer, settings) for scorer in scorers)

    def put(self, one: Served, *, current: bool = True) -> None:
        """Serve a version that is ready, as the current one or for those who ask for it."""
        key = one.name, one.version
        with self._lock:
            self._loaded = {**self._loaded, key: one}
            self._states = {**self._states, key: State(*key, READY)}
            if current or one.name not in self._current:
                self._current = {**self._current, one.name: one}

    def tell(self, state: State) -> None:
        """Say of a version that it is not ready, and why."""
        with self._lock:
            self._states = {**self._states, (state.name, state.version): state}

    def drop(self, name: str, version: int, reason: str) -> None:
        """Serve a version no more; calls that have it end on it."""
        key = name, version
        with self._lock:
            self._loaded = {k: one for k, one in self._loaded.items() if k != key}
            self._states = {**self._states, key: State(*key, UNAVAILABLE, reason)}
            now = self._current.get(name)
            if now is not None and now.version == version:
                left = [one for (n, _), one in self._loaded.items() if n == name]
                others = {n: one for n, one in self._current.items() if n != name}
                newest = max(left, key=lambda one: one.version, default=None)
                self._current = others if newest is None else {**others, name: newest}

    @property
    def ready(self) -> bool:
        """Whether new clients should come."""
        return bool(self._loaded) and not self.draining

    def only(self, caller: Caller | None = None) -> Served | None:
        """The version that answers who names neither; None where there are several models."""
        current = self._current
        return self._answers(next(iter(current.values())), caller) if len(current) == 1 else None

    def find(
        self, name: str = "", version: int = 0, label: str = "", caller: Caller | None = None
    ) -> Served:
        """The version that answers.

        Args:
            name: empty: of the only model.
            version: 0: the one with the label, or else the current one or, for its share of
                callers, the canary.

        Raises:
            Refused: it is not served here, or several are and none was named.
        """
        current = self._current
        if not name and len(current) == 1:
            (found,) = current.values()
        elif name in current:
            found = current[name]
        else:
            raise self._unknown(name, version, current)
        if label and not version:
            version = self.labels(found.name)[label]
            version = version or found.version * (label == STABLE)
            if not version:
                raise Refused(
                    grpc.StatusCode.NOT_FOUND,
                    f"no version of model {found.name!r} is labelled {label!r} here; labels are "
                    f"{', '.join(NAMES)}",
                )
        if not version:
            return self._answers(found, caller)
        asked = self._loaded.get((found.name, version))
        if asked is None:
            raise self._unknown(found.name, version, current)
        return asked

    def _answers(self, current: Served, caller: Caller | None) -> Served:
        """The version that answers a caller who asked for none."""
        labels = self._labels.get(current.name, NONE)
        if caller is None or not labels.canary or not labels.is_canarys(caller.key):
            return current
        return self._loaded.get((current.name, labels.canary), current)

    def shadow(self, of: Served, caller: Caller) -> Served | None:
        """The version that scores a call too that another one has answered; None: none does."""
        labels = self._labels.get(of.name, NONE)
        if labels.shadow in (0, of.version) or not labels.is_shadowed(caller.key):
            return None
        return self._loaded.get((of.name, labels.shadow))

    def labels(self, name: str) -> Labels:
        """Versions of a model by label."""
        return self._labels.get(name, NONE)

    def label(self, name: str, labels: Labels) -> None:
        """Give versions labels; the stable one becomes the current one, if it is there."""
        with self._lock:
            self._labels = {**self._labels, name: labels}
            stable = self._loaded.get((name, labels.stable))
            if stable is not None:
                self._current = {**self._current, name: stable}

    def current(self, name: str) -> Served | None:
        """The version of a model that answers who asks for none; None: the model is not served."""
        return self._current.get(name)

    def loaded(self, name: str = "") -> list[Served]:
        """Every version that answers, of one model or of all, in order."""
        found = self._loaded.items()
        return [one for key, one in sorted(found, key=lambda kv: kv[0]) if name in ("", key[0])]

    def states(self, name: str = "") -> list[State]:
        """What became of every version that was asked for, of one model or of all, in order."""
        return [state for key, state in sorted(self._states.items()) if name in ("", key[0])]

    def _unknown(self, name: str, version: int, current: dict[str, Served]) -> Refused:
        served = ", ".join(f"{one.name!r} version {one.version}" for one in current.values())
        if not current:
            return Refused(grpc.StatusCode.NOT_FOUND, "no model is served here at the moment")
        if not name:
            return Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"several models are served here, {served}; name the one that you want",
            )
        state = self._states.get((name, version))
        because = f" ({state.state}: {state.reason})" if state and state.reason else ""
        return Refused(
            grpc.StatusCode.NOT_FOUND,
            f"model {name!r} version {version or 'any'} is not served here{because}, only {served}",
        )
