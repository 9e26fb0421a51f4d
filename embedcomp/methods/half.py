"""16-bit floats: fp16 rows of tables, bfloat16 weights of linear layers.

A linear layer in bfloat16 also multiplies in it, with sums in float32, where the CPU can. Rows
that fp16 would overflow are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.compress import build
from embedcomp.compress.contract import Layer, Served, Spec, TableSpec
from embedcomp.served.formats import Storage


@dataclass(frozen=True, kw_only=True)
class Settings:
    pass


def candidates(spec: Spec) -> list[Settings]:
    return [Settings()]


def empty(spec: Spec, settings: Settings) -> Served:
    return build.plain(spec, _storage(spec))


def compress(layer: Layer, settings: Settings) -> Served:
    return build.rounded(layer, _storage(layer.spec))


def _storage(spec: Spec) -> Storage:
    return "float16" if isinstance(spec, TableSpec) else "bfloat16"
