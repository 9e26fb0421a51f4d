"""Linear layers that multiply bytes, with exact integer sums (dynamic quantization).

A weight has a scale an output; a row of inputs gets a scale and a zero when it comes, so nothing
has to be calibrated. What rounding the inputs costs is part of the predicted loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.compress import build
from embedcomp.compress.contract import Layer, LinearSpec, Served, Spec


@dataclass(frozen=True, kw_only=True)
class Settings:
    pass


def candidates(spec: Spec) -> list[Settings]:
    return [Settings()] if isinstance(spec, LinearSpec) else []


def empty(spec: Spec, settings: Settings) -> Served:
    return build.plain(spec, "symmetric_int8")


def compress(layer: Layer, settings: Settings) -> Served:
    return build.rounded(layer, "symmetric_int8")
