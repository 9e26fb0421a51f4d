"""What a run trains, as a name for its checkpoints: runs of one name go on from one another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain

import pyarrow as pa
import torch
from torch import Tensor, nn

from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.storage.training import Stage
from embedcomp.support.version import __version__
from embedcomp.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """Everything that the weights at the end of a run depend on, but for the number of workers:
    others may go on from where these were killed.

    model, teacher: digests of their modules' types, of what these say of themselves and of the
        weights that they begin with, so a plan's rounding, a stage or a checkpoint to start from is
        in them; an empty teacher is none.
    """

    version: str
    settings: TrainSettings
    log: str
    features: str
    model: str
    teacher: str
    stage: Stage
    share: float = 1.0  # of the splits' rows

    @classmethod
    def of(
        cls,
        model: nn.Module,
        log: ClickLog,
        splits: Iterable[str],
        features: Features,
        settings: TrainSettings,
        teacher: nn.Module | None,
        stage: Stage = "final",
        share: float = 1.0,
    ) -> RunKey:
        return cls(
            version=__version__,
            settings=settings,
            log=log.stamp(list(splits)),
            features=of_features(features),
            model=of_module(model),
            teacher="" if teacher is None else of_module(teacher),
            stage=stage,
            share=share,
        )

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def of_module(module: nn.Module) -> str:
    found = hashlib.sha256()
    for name, part in module.named_modules():
        kind = f"{type(part).__module__}.{type(part).__qualname__}({part.extra_repr()})"
        found.update(f"{name} {kind}\n".encode())
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        found.update(f"{name} {tensor.dtype} {[*tensor.shape]} {tensor.requires_grad}\n".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def of_features(features: Features) -> str:
    found = hashlib.sha256(repr(features.dense).encode())
    for feature in features.ids:
        ids = feature.vocabulary
        kind = feature.name, feature.side, feature.multi_valued, ids.dense_ids
        found.update(f"{kind}\n".encode())
        found.update(pa.RecordBatch.from_arrays([ids.values], ["ids"]).serialize())
        found.update(ids.counts.tobytes())
    return found.hexdigest()
