"""Scores from raw columns: an artifact's features and model, nothing of the network around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from embedcomp.artifact import Artifact
from embedcomp.errors import BadRequest
from embedcomp.log.batches import to_batch
from embedcomp.log.features import Features
from embedcomp.served.fused import fuse


class Scorer:
    """Scores candidates with one version of a model; safe to call from several threads."""

    def __init__(self, artifact: Artifact):
        self.name, self.version = artifact.name, artifact.version
        self.features: Features = artifact.features
        self._model = fuse(artifact.model())

    @classmethod
    def open(cls, path: str | Path) -> Scorer:
        """Load NAME (its newest version) or NAME/VERSION.

        Raises:
            BadArtifact: there is none, or it is damaged.
        """
        return cls(Artifact.open(path))

    def score(self, items: pa.RecordBatch, user: pa.RecordBatch | None = None) -> np.ndarray:
        """Click probabilities float32 [B].

        Args:
            items: raw columns, one row a candidate; nulls allowed.
            user: one row of columns that hold for every candidate.

        Raises:
            BadRequest: a feature is missing, given twice or of the wrong type.
        """
        columns = dict(zip(items.schema.names, items.columns, strict=True))
        if user is not None:
            columns |= _user_columns(user, columns)
        rows = self.features.encode(columns, items.num_rows)
        if not len(rows):  # torchrec cannot split an empty KeyedJaggedTensor
            return rows.labels
        batch = to_batch(rows, self.features.keys)
        with torch.inference_mode():
            logits = self._model(batch.dense, batch.sparse).view(-1)
            scores: np.ndarray = torch.sigmoid(logits.float()).numpy()
        return scores


def _user_columns(user: pa.RecordBatch, items: dict[str, pa.Array]) -> dict[str, pa.Array]:
    columns = dict(zip(user.schema.names, user.columns, strict=True))
    for name, column in columns.items():
        if len(column) != 1:
            raise BadRequest(name, f"has {len(column)} user rows, but a request has one user")
        if name in items:
            raise BadRequest(name, "is given for the user and for the items; give it once")
    return columns
