"""16-bit floats: fp16 rows of tables, bfloat16 weights of linear layers.

A linear layer in bfloat16 also multiplies in it, with sums in float32, where the CPU can. Rows
that fp16 would overflow are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts.whole import Whole, candidates_of, in_storage
from embedcomp.sensitivity.layer import TableSpec


@dataclass(frozen=True, kw_only=True)
class Settings(Whole):
    pass


candidates = candidates_of(Settings)
empty, compress = in_storage(lambda spec: "float16" if isinstance(spec, TableSpec) else "bfloat16")
