"""16-bit floats: fp16 rows of tables, bfloat16 weights of linear layers.

A linear layer in bfloat16 also multiplies in it, with sums in float32, where the CPU can. Rows
that fp16 would overflow are refused.
"""

from __future__ import annotations

from embedcomp.methods.parts.whole import Settings, candidates, in_storage
from embedcomp.sensitivity.layer import TableSpec

__all__ = ["Settings", "candidates", "compress", "empty"]

empty, compress = in_storage(lambda spec: "float16" if isinstance(spec, TableSpec) else "bfloat16")
