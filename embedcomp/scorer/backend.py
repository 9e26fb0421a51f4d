"""What can run a model: the compiled engine, or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from embedcomp.engine.description import Description
from embedcomp.engine.engine import Ready
from embedcomp.engine.prepare import Part
from embedcomp.engine.program import Work
from embedcomp.engine.requests import Requests
from embedcomp.log.features import Features
from embedcomp.log.rows import Rows


class Backend(Protocol):
    """Gives probabilities float32 [B].

    description: what it is, and why it is not the compiled engine.
    work: what a row costs the engine; None: torch scores.
    resident: bytes of the numbers that it reads when it scores, by module; "": of no module.
    splits: the user's part of the model is computed once for all candidates.
    """

    description: Description
    work: Work | None
    resident: Mapping[str, int]
    splits: bool

    def score_inputs(self, inputs: Any, one_user: bool) -> np.ndarray:
        """Probabilities of a model's own inputs, float32 [B]."""
        ...

    def ready_parts(self, parts: Sequence[Part]) -> Ready:
        """What gives those of a model's own inputs as arrays: what comes from elsewhere is here."""
        ...

    def score_encoded(self, rows: Rows, features: Features) -> np.ndarray:
        """Probabilities of a log's encoded rows, float32 [B]."""
        ...

    def score_columns(
        self,
        features: Features,
        items: pa.RecordBatch,
        user: pa.RecordBatch | None,
    ) -> np.ndarray:
        """Probabilities of raw columns, float32 [B]: a row a candidate, and one user."""
        ...

    def ready_columns(
        self,
        features: Features,
        items: pa.RecordBatch,
        user: pa.RecordBatch | None,
    ) -> Ready:
        """What gives the same, likewise, of columns that `requests` does not read."""
        ...

    def requests(self, features: Features) -> Requests | None:
        """What reads raw columns and requests into the engine; None: torch scores."""
        ...

    def call(self, items: Sequence[Part], user: Sequence[Part] | None) -> Callable[[], np.ndarray]:
        """A call that scores inputs which are prepared already, for measuring."""
        ...
