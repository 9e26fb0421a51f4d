"""What can be done with a layer: exact bytes and predicted loss of every method's candidates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch

from embedcomp import methods
from embedcomp.kernels.threads import threads_for
from embedcomp.modules.sizes import module_bytes
from embedcomp.sensitivity.layer import (
    Layer,
    Served,
    Spec,
    TableSpec,
)
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.kind import CannotStore
from embedcomp.support.progress import Counter

SAMPLED_ROWS = 1 << 16  # of a table, on which predicted losses are measured

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """One way to store one layer."""

    method: str
    settings: Any
    bytes: int
    loss: float  # predicted increase of the mean log loss
    nanoseconds: int = field(default=0, repr=False, compare=False)  # that it adds to a call, beside
    # the other choices that it was last weighed with; 0 where no latency is asked for


Chosen = dict[str, Choice]  # one choice a layer, by the layer's name
Wanted = Mapping[str, Sequence[Any]]  # settings to be tried, by method


@dataclass(frozen=True)
class Menu(Sequence[Choice]):
    """All that can be done with one layer, smallest first.

    layer: as it would be compressed: decoders of its tables are folded into it already.
    """

    layer: Layer
    found: tuple[Choice, ...]

    def __getitem__(self, place: Any) -> Any:
        return self.found[place]

    def __len__(self) -> int:
        return len(self.found)


def choices(layer: Layer, names: Iterable[str], counter: Counter | None = None) -> Menu:
    """Every candidate of these methods, with its bytes and its predicted loss.

    Args:
        counter: of candidates.
    """
    made = None if counter is None else partial(counter.add, note=layer.spec.name)
    found = found_by_method(layer.spec, seen_of(layer), every(layer.spec, names), made)
    return menu(layer, (choice for some in found.values() for choice in some))


def seen_of(layer: Layer) -> Layer:
    """The layer as its candidates are tried on it: a large table is a sample of its rows."""
    return layer.sampled(SAMPLED_ROWS) if isinstance(layer.spec, TableSpec) else layer


@torch.no_grad()
def found_by_method(
    spec: Spec, seen: Layer, wanted: Wanted, made: Callable[[], None] | None = None
) -> dict[str, list[Choice]]:
    """Candidates of each method, with their bytes and their predicted losses.

    Candidates are really made and read back, so that rounding counts.

    Args:
        spec: of the layer.
        seen: the layer or a sample of it.
        made: called after each candidate.
    """
    with threads_for(seen.weight.numel()), seen.trying() as tried:
        return {name: _of_method(name, some, spec, tried, made) for name, some in wanted.items()}


def menu(layer: Layer, found: Iterable[Choice]) -> Menu:
    return Menu(layer, tuple(sorted(found, key=lambda c: (c.bytes, c.loss))))


def every(spec: Spec, names: Iterable[str]) -> Wanted:
    """All candidates of these methods."""
    return {name: candidates(name, spec) for name in names}


def candidates(name: str, spec: Spec) -> tuple[Any, ...]:
    """Settings of a method that are worth trying for a layer."""
    return _offered(methods.get(name).candidates, spec)


@lru_cache(1 << 12)  # by the function, not the name: a method that is replaced is asked anew
def _offered(candidates_of: Callable[[Spec], Sequence[Any]], spec: Spec) -> tuple[Any, ...]:
    return tuple(candidates_of(spec))


def together(menus: Sequence[Menu]) -> Menu:
    """One layer's choices by several methods."""
    return menu(menus[0].layer, (choice for one in menus for choice in one))


def _of_method(
    name: str, wanted: Sequence[Any], spec: Spec, layer: Layer, made: Callable[[], None] | None
) -> list[Choice]:
    method = methods.get(name)
    found = []
    for settings in _counted(wanted, made):
        try:
            served = method.compress(layer, settings)
            loss = predicted_loss(layer, served)
        except CannotStore as error:
            log.warning("%s: %s is left out: %s", spec.name, settings, error)
            continue
        whole = layer.spec == spec
        size = module_bytes(served) if whole else empty_bytes(name, spec, settings)
        found.append(Choice(name, settings, size, loss))
    return found


def _counted(wanted: Sequence[Any], made: Callable[[], None] | None) -> Iterator[Any]:
    for settings in wanted:
        yield settings
        if made is not None:
            made()


def total_bytes(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.bytes for choice in chosen.values())


def total_nanoseconds(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.nanoseconds for choice in chosen.values())


def total_loss(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.loss for choice in chosen.values())


def front(found: Iterable[Choice], cost: str = "bytes") -> list[Choice]:
    """Those that are better than every smaller one, by size or by another cost."""
    kept: list[Choice] = []
    for choice in sorted(found, key=lambda c: (getattr(c, cost), c.loss)):
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return kept


def empty_on_meta(method: str, spec: Spec, settings: Any) -> Served:
    """The served module without memory."""
    with torch.device("meta"):
        return methods.get(method).empty(spec, settings)


def empty_bytes(method: str, spec: Spec, settings: Any) -> int:
    return module_bytes(empty_on_meta(method, spec, settings))
