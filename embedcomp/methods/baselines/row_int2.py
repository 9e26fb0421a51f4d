"""Two bits a value, an fp16 scale and bias a row, as fbgemm stores them: d/4 + 4 bytes a row."""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts.whole import Whole, candidates_of, in_storage


@dataclass(frozen=True, kw_only=True)
class Settings(Whole):
    pass


candidates = candidates_of(Settings)
empty, compress = in_storage(lambda spec: "row_int2")
