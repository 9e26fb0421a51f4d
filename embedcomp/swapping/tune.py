"""A short distillation of the compressed model from the original, through the stored form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from torch import nn

from embedcomp.support.progress import Watch
from embedcomp.swapping.swap import freeze, thaw
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a compressed model is tuned, and how the control is trained on."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: int = 0  # 0: not tuned
    learning_rate: float = 1e-3  # at the start; falls linearly to zero
    table_learning_rate: float = 5e-5  # of the tables' codes, likewise
    embedding_l2: float = 0.0
    distil: float = 1.0  # weight of the original's scores against the labels
    batch_rows: int = 4096
    seed: int = 0

    def training(self, distil: bool) -> TrainSettings:
        """The settings of the trainer that tunes; `distil` says whether there is a teacher."""
        return TrainSettings(
            epochs=self.epochs,
            batch_rows=self.batch_rows,
            learning_rate=self.learning_rate,
            table_learning_rate=self.table_learning_rate,
            embedding_l2=self.embedding_l2,
            schedule="linear",
            evaluations_per_epoch=1,
            distil=self.distil if distil else 0.0,
            precision="float32",  # the differences to be learnt are smaller than bfloat16's steps
            seed=self.seed,
        )


def tune(
    compressed: nn.Module,
    original: nn.Module,
    data: Data,
    settings: TuneSettings,
    folder: Path,
    watch: Watch,
) -> list[dict[str, Any]]:
    """Tune `compressed` in place; what is trained is rounded as it will be served.

    Returns:
        The history of evaluations; the first is the compressed model before tuning.
    """
    thaw(compressed)
    how = settings.training(distil=True)
    history = fit(compressed, data, how, folder, teacher=original, watch=watch, step="tuning")
    freeze(compressed)
    return history


def control(
    original: nn.Module, data: Data, settings: TuneSettings, folder: Path, watch: Watch
) -> list[dict[str, Any]]:
    """Train `original` on in place for the same epochs: what tuning alone would have brought."""
    how = settings.training(distil=False)
    return fit(original, data, how, folder, watch=watch, step="training the control")
