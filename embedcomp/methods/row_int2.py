"""Two bits a value, an fp16 scale and bias a row, as fbgemm stores them: d/4 + 4 bytes a row."""

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
    return build.plain(spec, "row_int2")


def compress(layer: Layer, settings: Settings) -> Served:
    return build.rounded(layer, "row_int2")
