"""What computes a model's scores, in words."""

from __future__ import annotations

import os
from dataclasses import dataclass

COMPILED, TORCH, MACHINE_CODE = "compiled engine", "torch", "machine code of AOTInductor"
OWN_CODE = "the model's own code"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What runs a model: printed by `serve`, `inspect` and `bench`, and sent as Metadata.

    name: one of the four above.
    threads: that share the work of a large call.
    precision: of products.
    reason: why it is not the compiled engine; empty where it is.
    saved_for: the precision that the artifact was saved for, where products have another.
    lookups: who looks up rows, where it is not the same; empty where it is.
    """

    name: str
    threads: int
    precision: str = "float32"
    reason: str = ""
    saved_for: str = ""
    lookups: str = ""

    def __str__(self) -> str:
        if not self.reason:
            rows = f", rows by {self.lookups}" if self.lookups else ""
            return f"{self.name}, {self.precision}{rows}"
        return f"{self.name}, since {self.reason}{self.lost}"

    @property
    def lost(self) -> str:
        """What becomes of products that another engine would compute as the artifact says."""
        if not self.saved_for:
            return ""
        return f"; products are {self.precision} and not {self.saved_for}, as it was saved"


def cores(threads: int | None) -> int:
    """The number of threads; None: one a core."""
    return threads or len(os.sched_getaffinity(0))
