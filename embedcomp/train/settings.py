"""The settings of the trainer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import ConfigDict


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a model is trained. The defaults are tuned (docs/training.md)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: int = 40  # at most; the plateau usually stops the run earlier
    batch_rows: int = 4096
    learning_rate: float = 1e-3
    table_learning_rate: float = 1e-3
    embedding_l2: float = 0.008  # on looked-up rows, scaled to stand for all rows (optim.chance)
    table_optimizer: Literal["adam", "rowwise_adagrad"] = "adam"
    schedule: Literal["plateau", "linear"] = "plateau"  # linear: falls to zero over `epochs`
    patience: int = 2  # evaluations without a clearly better AUC before the learning rate is cut
    min_rise: float = 1e-4  # of the validation AUC, to be clearly better
    cuts: int = 2  # times that the learning rate is cut by ten before the run stops
    evaluations_per_epoch: int = 1
    checkpoint_rows: int = 2_000_000  # rows trained between two checkpoints, at most
    distil: float = 1.0  # weight of the original's scores against the labels, where there is one
    seed: int = 0

    def fingerprint(self) -> str:
        """Names the checkpoints of runs that may go on from one another."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]
