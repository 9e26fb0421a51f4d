"""A scorer over real features whose model is a sum, so that every value of a request counts.

Run as a program it serves itself, slowly: `python toy_scorer.py SECONDS_A_CALL TOY/7`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa

from embedcomp.artifact.proof import Proof
from embedcomp.engine.description import COMPILED, Description
from embedcomp.engine.engine import Ready
from embedcomp.log.features import DenseFeature, Features, IdFeature
from embedcomp.log.vocabulary import Vocabulary


def _vocabulary(*values: int | str) -> Vocabulary:
    return Vocabulary(pa.array(values), np.ones(len(values) + 2, np.int64))


FEATURES = Features(
    ids=(
        IdFeature("user_id", "user", False, _vocabulary(10, 20, 30)),
        IdFeature("city", "user", False, _vocabulary("Zürich", "Basel")),
        IdFeature("genres", "item", True, _vocabulary(1, 2, 3, 4)),
        IdFeature("tags", "item", True, _vocabulary("a", "b")),
    ),
    dense=(
        DenseFeature("age", "user", "none", 30.0, 10.0),
        DenseFeature("price", "item", "log1p", 1.0, 2.0),
    ),
)


def save_small(
    out: Path,
    seed: int = 1,
    features: Features = FEATURES,
    *,
    compiled: bool = False,
    proof: Proof | None = None,
) -> Path:
    """A new version of a small model; each seed scores differently.

    Args:
        compiled: its scorer needs no torch, and it takes a while to save.
    """
    from embedcomp.artifact import artifact
    from embedcomp.artifact.source import ModelSource

    source = ModelSource(model="dcnv2", settings={"width": 4, "hidden": (8, 4)}).complete()
    model, alone = source.build(features, seed), None
    if compiled:
        from embedcomp.scorer.stand_alone import stand_alone_from_log

        alone = stand_alone_from_log(model.eval(), features)
    saved = artifact.save(
        out, model, features=features, source=source, alone=alone, bytes={}, proof=proof
    )
    return saved.folder


class ToyScorer:
    """Has the interface of embedcomp.scorer.Scorer."""

    name, version, features = "toy", 7, FEATURES
    description = Description(name=COMPILED, threads=1)
    has_features, alone, proof, seen = True, None, None, None

    def __init__(self, seconds: float = 0.0):
        self._seconds = seconds
        self.resident = {"tables": 10}
        self.entered = Event()  # set as soon as a call is being scored
        self.go_on = Event()  # calls wait for it
        self.go_on.set()
        self.fault: Exception | None = None

    def read_message(self, message: bytes, *, max_rows: int, max_ids: int) -> None:
        """None: it reads no requests, as scorers by torch do not."""

    def read(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> None:
        """None, likewise."""

    def ready(self, items: pa.RecordBatch, user: pa.RecordBatch | None) -> Ready:
        return Ready(lambda: self.score(items, user))

    def score(self, items: pa.RecordBatch, user: pa.RecordBatch | None = None) -> np.ndarray:
        self.entered.set()
        self.go_on.wait(30)
        if self._seconds:
            print("scoring", flush=True)
            time.sleep(self._seconds)
        if self.fault is not None:
            raise self.fault
        columns = dict(zip(items.schema.names, items.columns, strict=True))
        if user is not None:
            columns |= dict(zip(user.schema.names, user.columns, strict=True))
        rows = self.features.encode(columns, items.num_rows)
        total = rows.dense @ np.array([0.3, -0.7], np.float32)
        total += rows.single @ np.array([0.11, 0.37], np.float32)
        for bag in rows.bags:
            sums = np.concatenate([[0], np.cumsum((bag.values + 1) * 0.13)])
            total += np.diff(sums[bag.offsets]).astype(np.float32)
        return (1 / (1 + np.exp(-total))).astype(np.float32)


if __name__ == "__main__":
    from embedcomp.serving.repository import Repository
    from embedcomp.serving.server import serve
    from embedcomp.serving.settings import ServerSettings

    (Path(sys.argv[2]) / "manifest.json").write_text("a toy")
    settings = ServerSettings(port=0, grace_s=20, connection_s=1)

    toy: Any = ToyScorer()
    repository = Repository([Path(sys.argv[2])], settings, lambda _: toy)
    toy._seconds = float(sys.argv[1])  # slow from then on, and not while it warms up
    serve(lambda: repository, settings)
