"""Scoring where the compiled engine cannot: the exported program, or the model itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embedcomp.artifact.artifact import Artifact
from embedcomp.engine.arrays import as_array
from embedcomp.engine.description import (
    MACHINE_CODE,
    OWN_CODE,
    TORCH,
    Description,
    cores,
)
from embedcomp.engine.engine import Ready
from embedcomp.engine.prepare import (
    Part,
    columns_of,
    made_up,
    matched,
    prepared,
    refuse_several,
    rows_of,
)
from embedcomp.engine.program import Work
from embedcomp.engine.standalone import Standalone
from embedcomp.engine.tensors import bytes_by_layer
from embedcomp.errors import BadModel, BadRequest
from embedcomp.graph.lookups import CannotExport
from embedcomp.kernels import native
from embedcomp.log.batches import to_batch
from embedcomp.log.features import Features
from embedcomp.log.rows import Rows
from embedcomp.modules.layout import layouts
from embedcomp.scorer import compiled
from embedcomp.scorer.backend import Backend
from embedcomp.scorer.by_engine import ByEngine
from embedcomp.scorer.interpreted import Interpreted
from embedcomp.scorer.portable import Portable
from embedcomp.scorer.stand_alone import stand_alone_from_log

COMPILED_ROWS = 11  # of the example that a program is compiled with


def opened(artifact: Artifact, threads: int | None, precision: str | None) -> Backend:
    """The artifact's program; an artifact without one is built by the model's own code."""
    if artifact.standalone is None:
        return in_memory(artifact.model(), artifact.features, threads, precision)
    alone, held = artifact.standalone, artifact.tensors()
    if artifact.has_program:
        runs = Portable.open(alone, artifact.folder, held, in_full=not artifact.ranks)
        return _by_torch(alone, runs, threads)
    return _by_torch(alone, Interpreted(alone, held), threads)


def machine_code(artifact: Artifact) -> Path:
    """Compile the artifact's program for this machine; where that is kept.

    Raises:
        BadModel: there is none, or it cannot be compiled.
    """
    alone = artifact.standalone
    assert alone is not None
    if not artifact.has_program:
        raise BadModel(
            f"{artifact.folder} has no program to compile, since the compiled engine runs it; "
            f"{native.NotBuilt()}"
        )
    features = artifact.features if artifact.has_features else None
    inputs = tuple(tensor_of(part) for part in made_up(alone, features, COMPILED_ROWS, 0))
    portable = Portable.open(alone, artifact.folder, artifact.tensors())
    return compiled.build(artifact.folder, portable.arguments(inputs))


def in_memory(
    model: nn.Module,
    features: Features,
    threads: int | None = 1,
    precision: str | None = None,
) -> Backend:
    """A model of a log's features as it is served."""
    try:
        exported = stand_alone_from_log(model, features)
    except CannotExport as error:
        logging.getLogger(__name__).warning("scored by the model's own code: %s", error)
        own = Description(name=OWN_CODE, threads=cores(threads), reason=str(error))
        return ByTorch(lambda inputs: model(*inputs).view(-1), None, own, _stored(model))
    alone = exported.standalone
    if alone.graph is None or native.library() is None:
        runs = Portable(alone, exported.program, exported.held)
        return _by_torch(alone, runs, threads)
    held = {name: as_array(tensor) for name, tensor in exported.held.items()}
    return ByEngine(alone, held, threads, precision)


def _by_torch(alone: Standalone, runs: Portable | Interpreted, threads: int | None) -> ByTorch:
    described = Description(
        name=MACHINE_CODE if runs.compiled else TORCH,
        threads=cores(threads),
        reason=alone.reason or str(native.NotBuilt()),
        saved_for=" and ".join(sorted(alone.precisions - {"float32"})),
    )
    return ByTorch(runs.logits, alone, described, runs.resident)


def _stored(model: nn.Module) -> dict[str, int]:
    """Bytes of a model's own tensors by layer; its code reads compressed layers as stored."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    arrays = {name: as_array(tensor.detach()) for name, tensor in tensors.items()}
    return bytes_by_layer(arrays, layouts(model))


@contextmanager
def _on_threads(count: int) -> Iterator[None]:
    """`count` threads for torch's operations that this thread starts in the block.

    torch reads its own number the first time that a thread asks for it, so that comes first.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ByTorch:
    """A function of a model's inputs to logits [B]."""

    def __init__(
        self,
        logits: Callable[[Any], Tensor],
        alone: Standalone | None,
        description: Description,
        resident: Mapping[str, int],
    ):
        self._logits, self._alone, self.description = logits, alone, description
        self.work: Work | None = None
        self.resident = resident
        self.splits = False

    def call(self, items: Sequence[Part], user: Sequence[Part] | None) -> Callable[[], np.ndarray]:
        """A call that scores these inputs."""
        assert user is None, "the user's part is not computed apart"
        inputs = tuple(tensor_of(part) for part in items)

        return lambda: self._probabilities(inputs)

    @torch.inference_mode()
    def _probabilities(self, inputs: Any) -> np.ndarray:
        with _on_threads(self.description.threads):
            return torch.sigmoid(self._logits(inputs).float()).numpy()

    def score_inputs(self, inputs: Any, one_user: bool) -> np.ndarray:
        """Probabilities [B]; the user's part is computed for every row."""
        if self._alone is not None:
            if not _check(inputs, self._alone):
                return np.empty(0, np.float32)
            if one_user:
                refuse_several(inputs, self._alone)
            inputs = matched(inputs, self._alone.leaves)
        return self._finite(inputs)

    def _finite(self, inputs: Any) -> np.ndarray:
        scores = self._probabilities(inputs)
        if not np.isfinite(scores).all():
            raise BadRequest("score", "a row has none: its numbers are not finite")
        return scores

    def ready_parts(self, parts: Sequence[Part]) -> Ready:
        return Ready(partial(self._score_parts, parts))

    def _score_parts(self, parts: Sequence[Part]) -> np.ndarray:
        """Probabilities [B]; raises as `score_inputs` does."""
        if not rows_of(parts):
            return np.empty(0, np.float32)
        for part in parts:
            name, lengths = part.leaf.name, part.lengths
            if lengths is not None and ((lengths < 0).any() or lengths.sum() != len(part.values)):
                raise BadRequest("inputs", f"{name}: its lengths do not fit its values")
            if part.leaf.kind == "dense" and not np.isfinite(part.values).all():
                raise BadRequest("inputs", f"{name} holds a number that is not finite")
        return self._finite(tuple(tensor_of(part) for part in parts))

    def score_encoded(self, rows: Rows, features: Features) -> np.ndarray:
        if not len(rows):  # torchrec cannot split an empty KeyedJaggedTensor
            return rows.labels
        batch = to_batch(rows, features.keys)
        return self.score_inputs((batch.dense, batch.sparse), False)

    def score_columns(
        self,
        features: Features,
        items: pa.RecordBatch,
        user: pa.RecordBatch | None,
    ) -> np.ndarray:
        """Probabilities [B]; the user's columns are repeated."""
        columns, theirs = columns_of(items, user)
        encoded = features.encode({**columns, **theirs}, items.num_rows)
        return self.score_encoded(encoded, features)

    def ready_columns(
        self,
        features: Features,
        items: pa.RecordBatch,
        user: pa.RecordBatch | None,
    ) -> Ready:
        return Ready(partial(self.score_columns, features, items, user))

    def requests(self, features: Features) -> None:
        """None: torch reads no messages."""


def tensor_of(part: Part) -> Tensor | KeyedJaggedTensor:
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


def _check(inputs: Any, alone: Standalone) -> int:
    """Number of rows.

    Raises:
        BadRequest: the inputs are not like the example's, bags do not fit their ids, or a number is
            not finite.
    """
    rows = prepared(inputs, alone.leaves).rows
    for leaf, value in zip(alone.leaves, matched(inputs, alone.leaves), strict=True):
        if leaf.kind == "jagged":
            lengths = value.lengths()
            if bool((lengths < 0).any()) or int(lengths.sum()) != len(value.values()):
                raise BadRequest("inputs", f"{leaf.name}: its lengths do not fit its values")
        elif leaf.kind == "dense" and not bool(torch.isfinite(value).all()):
            raise BadRequest("inputs", f"{leaf.name} holds a number that is not finite")
    return rows
