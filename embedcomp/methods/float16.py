"""Every value as a 16-bit float."""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.compress import build
from embedcomp.compress.contract import Layer, Served, Spec


@dataclass(frozen=True, kw_only=True)
class Settings:
    pass


def candidates(spec: Spec) -> list[Settings]:
    return [Settings()]


def empty(spec: Spec, settings: Settings) -> Served:
    return build.plain(spec, "float16")


def compress(layer: Layer, settings: Settings) -> Served:
    return build.rounded(layer, "float16")
