"""What can be done with a layer: exact bytes and predicted loss of every method's candidates."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, cast

import torch

from embedcomp import methods
from embedcomp.kernels.threads import threads_for
from embedcomp.modules.sizes import module_bytes
from embedcomp.sensitivity.layer import (
    IdsMeet,
    Layer,
    Served,
    Spec,
    Suits,
    TableSpec,
)
from embedcomp.sensitivity.loss import predicted_loss
from embedcomp.storage.kind import CannotStore
from embedcomp.support.progress import Counter

SAMPLED_ROWS = 1 << 13  # of a table, on which predicted losses are measured
NEGLIGIBLE = 1e-9  # predicted loss of a layer that no plan is better for falling below
FEW = 4  # candidates of a method that are all made
TOGETHER = 3  # candidates of which one may speak for the others
LEARNT = 0.2  # power of its bytes by which training lessens the loss of a form whose ids meet

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
    add = None if counter is None else partial(counter.add, note=layer.spec.name)
    wanted = [suited(layer, some) for some in apart(every(layer.spec, names))]
    found = [found_by_method(layer.spec, seen_of(layer, some), some, add) for some in wanted]
    return menu(layer, (choice for one in found for some in one.values() for choice in some))


def seen_of(layer: Layer, wanted: Wanted) -> Layer:
    """The layer as candidates are tried on it: a large table is a sample of its rows.

    Where ids share rows it is the whole table: in a sample others would meet.
    """
    if not isinstance(layer.spec, TableSpec) or any(map(_ids_meet, wanted)):
        return layer
    return layer.sampled(SAMPLED_ROWS)


def apart(wanted: Wanted) -> list[Wanted]:
    """What is tried on a sample of a table and what on all of it."""
    parts = [
        {name: some for name, some in wanted.items() if _ids_meet(name) is whole}
        for whole in (False, True)
    ]
    return [part for part in parts if part]


def suited(layer: Layer, wanted: Wanted) -> Wanted:
    """What is tried of a layer, by what its numbers say of it."""
    suits = {
        name: cast(Suits, one) for name in wanted if hasattr(one := methods.get(name), "suited")
    }
    if not suits:
        return wanted
    seen = seen_of(layer, wanted)
    with threads_for(seen.weight.numel()), seen.trying() as tried, torch.no_grad():
        return {
            name: suits[name].suited(tried, some) if name in suits else some
            for name, some in wanted.items()
        }


def nearby(layer: Layer, choice: Choice) -> Wanted:
    """Settings of a choice's method that are near its own; none: the method says of none."""
    method = methods.get(choice.method)
    if not hasattr(method, "nearby"):
        return {}
    seen = seen_of(layer, {choice.method: (choice.settings,)})
    with threads_for(seen.weight.numel()), seen.trying() as tried, torch.no_grad():
        return {choice.method: cast(Suits, method).nearby(tried, choice.settings)}


def _ids_meet(method: str) -> bool:
    return issubclass(methods.get(method).Settings, IdsMeet)


@torch.no_grad()
def found_by_method(
    spec: Spec,
    seen: Layer,
    wanted: Wanted,
    add: Callable[[int], None] | None = None,
    *,
    sparing: bool = False,
) -> dict[str, list[Choice]]:
    """Candidates of each method, with their bytes and their predicted losses.

    Candidates are really made and read back, so that rounding counts.

    Args:
        spec: of the layer.
        seen: the layer or a sample of it.
        add: called with how many candidates more are made or need not be.
        sparing: leave out those that `spared` does.
    """
    add = add or (lambda number: None)
    with threads_for(seen.weight.numel()), seen.trying() as tried:
        return {
            name: _of_method(name, some, spec, tried, add, sparing) for name, some in wanted.items()
        }


def spared(
    name: str, wanted: Sequence[Any], spec: Spec, make: Callable[[Any], Choice | None]
) -> list[Choice]:
    """The candidates of one method that a plan by bytes is likely to need.

    None is made that is larger than one that loses next to nothing. In a method's order neighbours
    differ in little, so of three in a row the one between is made, and the others only if it is
    better than all that are smaller. The smallest of all is always made.

    Args:
        make: a candidate; None: it cannot be stored.
    """
    sizes = {settings: empty_bytes(name, spec, settings) for settings in wanted}
    found: list[Choice] = []

    def add(some: Iterable[Any]) -> None:
        for settings in sorted(some, key=lambda settings: sizes[settings]):
            if sizes[settings] <= _large_enough(found):
                choice = make(settings)
                found.extend([] if choice is None else [choice])

    if len(wanted) <= FEW:
        add(wanted)
        return found
    starts = range(0, len(wanted), TOGETHER)
    together = [wanted[start : start + TOGETHER] for start in starts]
    first = {some[len(some) // 2] for some in together}
    first.add(min(wanted, key=lambda settings: sizes[settings]))
    add(first)
    best = {choice.settings for choice in front(found)}
    add({settings for some in together if best.intersection(some) for settings in some} - first)
    return found


def few_of(wanted: Sequence[Any]) -> Sequence[Any]:
    """Candidates of one method that may speak for all."""
    return wanted if len(wanted) <= FEW else wanted[TOGETHER // 2 :: TOGETHER]


def _large_enough(found: Iterable[Choice]) -> float:
    """Bytes beyond which no candidate is better; infinite: not known."""
    return min((choice.bytes for choice in found if choice.loss <= NEGLIGIBLE), default=math.inf)


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
    name: str,
    wanted: Sequence[Any],
    spec: Spec,
    layer: Layer,
    add: Callable[[int], None],
    sparing: bool,
) -> list[Choice]:
    number = 0

    def make(settings: Any) -> Choice | None:
        nonlocal number
        found = _tried(name, settings, spec, layer)
        number += 1
        add(1)
        return found

    if sparing:
        found = spared(name, wanted, spec, make)
    else:
        found = [choice for choice in map(make, wanted) if choice is not None]
    if number < len(wanted):
        add(len(wanted) - number)
    return found


def _tried(name: str, settings: Any, spec: Spec, layer: Layer) -> Choice | None:
    """A candidate; None: it cannot be stored."""
    try:
        served = methods.get(name).compress(layer, settings)
        loss = predicted_loss(layer, served)
    except CannotStore as error:
        log.warning("%s: %s is left out: %s", spec.name, settings, error)
        return None
    complete = layer.spec == spec
    size = module_bytes(served) if complete else empty_bytes(name, spec, settings)
    if _ids_meet(name):
        loss *= _left_by_training(size, spec)
    return Choice(name, settings, size, loss)


def _left_by_training(size: int, spec: Spec) -> float:
    """Factor of the loss that a form begins with whose ids meet, the larger the smaller it is.

    It begins with means, of which a few columns tell all, so that more of them seem to bring
    nothing. Training makes use of every number.
    """
    assert isinstance(spec, TableSpec)
    return float((spec.rows * spec.dim / size) ** LEARNT)


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
    return _bytes(methods.get(method).empty, spec, settings)


@lru_cache(1 << 14)  # by the function, as above
def _bytes(empty: Callable[[Spec, Any], Served], spec: Spec, settings: Any) -> int:
    with torch.device("meta"):
        return module_bytes(empty(spec, settings))
