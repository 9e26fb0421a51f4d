"""Scoring where the compiled engine cannot: the exported program, or the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.artifact import Artifact
from embedcomp.errors import BadRequest
from embedcomp.log.batches import to_batch
from embedcomp.log.features import Features
from embedcomp.scoring.inputs import leaves
from embedcomp.scoring.lower import Work
from embedcomp.scoring.portable import Portable
from embedcomp.scoring.prepare import Part
from embedcomp.scoring.standalone import Standalone
from embedcomp.served.fused import fuse


def opened(artifact: Artifact) -> ByTorch:
    """The artifact's program; an artifact without one is built by the model's own code."""
    alone = artifact.standalone
    if alone is not None:
        portable = Portable.open(alone, artifact.folder, artifact.tensors())
        reason = alone.reason or "the compiled engine was not built"
        return ByTorch(portable.logits, alone, f"torch, since {reason}")
    model = fuse(artifact.model())
    return ByTorch(lambda inputs: model(*inputs).view(-1), None, "the model's own code")


class ByTorch:
    """A function of a model's inputs to logits [B]."""

    def __init__(self, logits: Callable[[Any], Tensor], alone: Standalone | None, description: str):
        self._logits, self._alone, self.description = logits, alone, description
        self.work: Work | None = None
        self.splits = False

    def call(self, items: Sequence[Part], user: Sequence[Part] | None) -> Callable[[], np.ndarray]:
        """A call that scores these inputs."""
        assert user is None, "the user's part is not computed apart"
        inputs = tuple(_tensor(part) for part in items)

        @torch.inference_mode()
        def score() -> np.ndarray:
            return torch.sigmoid(self._logits(inputs).float()).numpy()

        return score

    @torch.inference_mode()
    def score_inputs(self, inputs: Any, one_user: bool) -> np.ndarray:
        """Probabilities [B]; the user's part is computed for every row."""
        if self._alone is not None:
            _check(inputs, self._alone)
        scores: np.ndarray = torch.sigmoid(self._logits(inputs).float()).numpy()
        if not np.isfinite(scores).all():
            raise BadRequest("score", "a row has none: its numbers are not finite")
        return scores

    def score_columns(
        self,
        features: Features,
        items: Mapping[str, pa.Array],
        user: Mapping[str, pa.Array],
        rows: int,
    ) -> np.ndarray:
        """Probabilities [B]; the user's columns are repeated."""
        encoded = features.encode({**items, **user}, rows)
        if not rows:  # torchrec cannot split an empty KeyedJaggedTensor
            return encoded.labels
        batch = to_batch(encoded, features.keys)
        return self.score_inputs((batch.dense, batch.sparse), False)


def _tensor(part: Part) -> Tensor | KeyedJaggedTensor:
    values = torch.from_numpy(part.values)
    if part.lengths is None:
        return values.view(-1) if part.leaf.width is None else values
    weights = None if part.weights is None else torch.from_numpy(part.weights)
    return KeyedJaggedTensor(
        keys=list(part.leaf.keys),
        values=values,
        lengths=torch.from_numpy(part.lengths),
        weights=weights,
    )


def _check(inputs: Any, alone: Standalone) -> None:
    found = [name for name, _ in leaves(inputs)]
    wanted = [leaf.name for leaf in alone.leaves]
    if found != wanted:
        raise BadRequest("inputs", f"have parts {found}, but the model was saved with {wanted}")
    for leaf, (_, value) in zip(alone.leaves, leaves(inputs), strict=True):
        if leaf.kind == "dense" and not bool(torch.isfinite(value).all()):
            raise BadRequest("inputs", f"{leaf.name} holds a number that is not finite")
