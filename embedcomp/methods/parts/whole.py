"""Methods without a setting: every layer's own matrix in one storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from embedcomp.methods.parts import build
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.names import Storage


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Settings of such a method, of which there are none; each has a class of its own."""


S = TypeVar("S", bound=Whole)


def candidates_of(settings: type[S]) -> Callable[[Spec], list[S]]:
    """A method's `candidates`, where it takes every layer."""
    return lambda spec: [settings()]


def in_storage(
    storage_of: Callable[[Spec], Storage],
) -> tuple[Callable[[Spec, Whole], Served], Callable[[Layer, Whole], Served]]:
    """A method's `empty` and `compress`."""

    def empty(spec: Spec, settings: Whole) -> Served:
        return build.plain(spec, storage_of(spec))

    def compress(layer: Layer, settings: Whole) -> Served:
        return build.rounded(layer, storage_of(layer.spec))

    return empty, compress
