"""Models that are served, made by the project's own recipes, and calls made of a click log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedcomp import recipes
from embedcomp.artifact.artifact import MANIFEST, Artifact, versions
from embedcomp.artifact.source import ModelSource
from embedcomp.log.batches import to_batch
from embedcomp.log.click_log import ClickLog
from embedcomp.log.counts import count
from embedcomp.log.features import Features
from embedcomp.recipes.progress import shown
from embedcomp.recipes.settings import CompressSettings, changed
from embedcomp.serving.convert import to_request
from embedcomp.serving.wire import inference_pb2
from embedcomp.serving.wire.embedcomp.v1 import scoring_pb2
from embedcomp.train.settings import TrainSettings

PREDICT = "/embedcomp.v1.ScoringService/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
ONE_USER = "1 x 128"
DIFFERENT = 16  # calls of one size, so that not all rows are in the cache
MODEL, MIN_COUNT, BUDGET = "dcnv2", 2, "20x"


def trained(log: ClickLog, folder: Path, changes: Sequence[str], seed: int = 0) -> Artifact:
    """A new version of a model, trained on a log.

    Args:
        changes: of the trainer's settings, as name=value.
    """
    features = Features.from_counts(log, count(log, log.pieces("train")), MIN_COUNT)
    settings, source = changed(TrainSettings(seed=seed), changes), ModelSource(model=MODEL)
    with shown("training") as watch:
        return recipes.train(log, features, source.complete(), settings, folder, watch=watch)


def original(log: ClickLog, folder: Path, changes: Sequence[str]) -> Artifact:
    """A trained model, unless one is there already."""
    return Artifact.open(folder) if _is_there(folder) else trained(log, folder, changes)


def compressed(of: Callable[[], Artifact], log: ClickLog, folder: Path) -> Artifact:
    """A model at a twentieth of its bytes, unless that is there already."""
    if _is_there(folder):
        return Artifact.open(folder)
    model, settings = of(), CompressSettings(budget=BUDGET)
    with shown("compressing") as watch:
        measured = recipes.measure(model, log, settings, watch=watch)
        plan = recipes.plan(model, measured, settings, watch=watch)
        return recipes.compress(model, log, measured, plan, settings, folder, watch=watch)


def _is_there(folder: Path) -> bool:
    return bool(versions(folder)) or (folder / MANIFEST).is_file()


@dataclass(frozen=True)
class Calls:
    """Rows of a log's test split, as calls of some rows each or of one user and 128 candidates."""

    features: Features
    log: ClickLog
    size: str

    @property
    def rows(self) -> int:
        """Candidates of a call."""
        return int(self.size.rpartition(" ")[2])

    @cached_property
    def whole(self) -> list[pa.RecordBatch]:
        """Rows of each call with all their columns."""
        read = next(iter(self.log.read(self.log.pieces("test")[0]))).select(self.features.names)
        places = np.arange(DIFFERENT * self.rows).reshape(DIFFERENT, -1) % len(read)
        taken = [read.take(pa.array(p)) for p in places]
        return [self._of_one_user(one) for one in taken] if self.size == ONE_USER else taken

    @cached_property
    def columns(self) -> list[tuple[pa.RecordBatch, pa.RecordBatch | None]]:
        """Candidates and the user of each call; None: all columns are the candidates'."""
        if self.size != ONE_USER:
            return [(one, None) for one in self.whole]
        user, item = self.features.user.names, self.features.item.names
        return [(one.select(item), one.slice(0, 1).select(user)) for one in self.whole]

    @cached_property
    def ours(self) -> list[bytes]:
        """Messages of the typed service, raw ids in them."""
        return [to_request(*one).SerializeToString() for one in self.columns]

    @cached_property
    def encoded(self) -> list[bytes]:
        """Messages of the Open Inference Protocol with what a torchrec model reads: dense numbers
        and a KeyedJaggedTensor's values and lengths, ids as rows of tables."""
        return [self._encoded(one) for one in self.whole]

    def _of_one_user(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        first = pa.array(np.zeros(len(rows), np.int32))
        user = set(self.features.user.names)
        columns = {n: rows[n].take(first) if n in user else rows[n] for n in rows.schema.names}
        return pa.RecordBatch.from_pydict(columns)

    def _encoded(self, rows: pa.RecordBatch) -> bytes:
        batch = self.batch(rows)
        request = inference_pb2.ModelInferRequest(model_name="torchrec")
        arrays = {
            "dense": ("FP32", batch.dense.numpy()),
            "values": ("INT64", batch.sparse.values().numpy()),
            "lengths": ("INT64", batch.sparse.lengths().numpy()),
        }
        for name, (datatype, array) in arrays.items():
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        return request.SerializeToString()

    def batch(self, rows: pa.RecordBatch):
        """What the torchrec model reads."""
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        return to_batch(self.features.encode(columns, len(rows)), self.features.keys)


def scores_of(method: str, answer: bytes) -> np.ndarray:
    """Scores in an answer of either service."""
    if method == PREDICT:
        return np.frombuffer(scoring_pb2.PredictResponse.FromString(answer).scores, "<f4")
    told = inference_pb2.ModelInferResponse.FromString(answer)
    if told.raw_output_contents:
        return np.frombuffer(told.raw_output_contents[0], "<f4")
    return np.array(told.outputs[0].contents.fp32_contents, np.float32)
