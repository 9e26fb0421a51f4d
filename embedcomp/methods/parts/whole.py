"""Methods without a setting: every layer's own matrix in one storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from embedcomp.methods.parts import build
from embedcomp.sensitivity.layer import Layer, Served, Spec
from embedcomp.storage.names import Storage


@dataclass(frozen=True, kw_only=True)
class Settings:
    pass


def candidates(spec: Spec) -> list[Settings]:
    return [Settings()]


def in_storage(
    storage_of: Callable[[Spec], Storage],
) -> tuple[Callable[[Spec, Settings], Served], Callable[[Layer, Settings], Served]]:
    """A method's `empty` and `compress`."""

    def empty(spec: Spec, settings: Settings) -> Served:
        return build.plain(spec, storage_of(spec))

    def compress(layer: Layer, settings: Settings) -> Served:
        return build.rounded(layer, storage_of(layer.spec))

    return empty, compress
