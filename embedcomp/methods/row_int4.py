"""Four bits a value, an fp16 scale and bias a row, as fbgemm stores them: d/2 + 4 bytes a row."""

from __future__ import annotations

from embedcomp.methods.parts.whole import Settings, candidates, in_storage

__all__ = ["Settings", "candidates", "compress", "empty"]

empty, compress = in_storage(lambda spec: "row_int4")
