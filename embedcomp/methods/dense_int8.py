"""Linear layers that multiply bytes, with exact integer sums (dynamic quantization).

A weight has a scale an output; a row of inputs gets a scale and a zero when it comes, so nothing
has to be calibrated. What rounding the inputs costs is part of the predicted loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedcomp.methods.parts.whole import Whole, in_storage
from embedcomp.sensitivity.layer import LinearSpec, Spec


@dataclass(frozen=True, kw_only=True)
class Settings(Whole):
    pass


empty, compress = in_storage(lambda spec: "symmetric_int8")


def candidates(spec: Spec) -> list[Settings]:
    return [Settings()] if isinstance(spec, LinearSpec) else []
