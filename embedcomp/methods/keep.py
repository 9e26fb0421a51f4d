"""The layer as it is, in float32."""

from __future__ import annotations

from embedcomp.methods.parts.whole import Settings, candidates, in_storage

__all__ = ["Settings", "candidates", "compress", "empty"]

empty, compress = in_storage(lambda spec: "float32")
