"""The settings of the trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from pydantic import ConfigDict

from embedcomp.errors import BadSettings
from embedcomp.support.fields import refuse_below
from embedcomp.support.lazy import torch

BATCH_ROWS = 4096
STEPS = 32  # of an epoch of a small log
NEAR, FAR = 0.03, 1.0  # factors of the learning rates, by how far from its end a model begins
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # capabilities of a CPU


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a model is trained. The defaults are tuned (docs/training.md)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: int = 40  # at most; the plateau usually stops the run earlier
    batch_rows: int = 0  # of a step; 0: 4,096, or fewer on a log of fewer than 131,072 rows, so
    # that an epoch has 32 steps
    learning_rate: float = 1e-3
    table_learning_rate: float = 1e-3
    rate_factor: float | None = 1.0  # times both learning rates; None: 1 for what begins far from
    # its end, 0.03 for what begins near it, and between them in proportion
    embedding_l2: float | None = None  # half of it times the sum of the tables' squares is added to
    # the sum of the log loss over all rows of the log, so that one value suits logs of any size;
    # None: chosen by short probes
    table_optimizer: Literal["adam", "rowwise_adagrad"] = "adam"
    schedule: Literal["plateau", "linear"] = "plateau"  # linear: falls to zero over `epochs`
    patience: int = 2  # epochs without a clearly better AUC before the learning rate is cut
    max_fall: float = 0.005  # of the validation AUC below its best, at which it is cut at once
    min_rise: float = 1e-4  # of the validation AUC, to be clearly better
    cuts: int = 2  # times that the learning rate is cut by ten before the run stops
    evaluations_per_epoch: int = 0  # 0: as many as take about a tenth of the time, at least one
    checkpoint_rows: int = 2_000_000  # rows trained between two checkpoints, at most
    distil: float | None = None  # weight of a teacher's scores against the labels, where there is
    # one: 0 is the labels alone, 1 the scores alone; None: chosen by short probes
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of products while training; auto:
    # bfloat16 where the CPU multiplies it natively. Weights, tables and evaluations are float32
    probes: bool = True  # what is left to them is otherwise as it usually is
    seed: int = 0  # equal seeds give equal runs

    def __post_init__(self) -> None:
        refuse_below(
            self, epochs=0, batch_rows=0, cuts=0, evaluations_per_epoch=0, checkpoint_rows=1
        )
        refuse_below(self, learning_rate=0, table_learning_rate=0, rate_factor=0, embedding_l2=0)
        refuse_no_share("distil", self.distil)

    def for_rows(self, rows: int) -> TrainSettings:
        """These settings with a batch size, which suits a worker that trains on `rows` rows.

        In a few steps an epoch nothing is learnt yet, and the AUC that falls and rises by chance
        would end the run.
        """
        if self.batch_rows:
            return self
        return replace(self, batch_rows=max(1, min(BATCH_ROWS, rows // STEPS)))

    def begun(self, far: float) -> Self:
        """These settings with a factor of the rates.

        Args:
            far: how far from its end a model begins, from 0 to 1; NaN: it is not known, and taken
                to be near.
        """
        if self.rate_factor is not None:
            return self
        return replace(self, rate_factor=min(far, FAR) if far > NEAR else NEAR)

    @property
    def in_bfloat16(self) -> bool:
        """Whether products are in bfloat16 on this machine."""
        if self.precision == "auto":
            found = torch.cpu.get_capabilities()
            return any(found.get(name) for name in NATIVE_BFLOAT16)
        return self.precision == "bfloat16"


@dataclass(frozen=True, kw_only=True)
class FormTrainSettings(TrainSettings):
    """How a compressed form is trained: as a model, but for the defaults that are given here."""

    epochs: int = 0  # exactly; 0: it is not trained
    schedule: Literal["plateau", "linear"] = "linear"  # falls to zero over `epochs`; plateau: the
    # rate is cut where the AUC stops rising, which may end the run earlier
    rate_factor: float | None = None  # times both learning rates; None: 1 for what begins far from
    # its end, as numbers that were drawn, 0.03 for what rounds a trained model well, which steps
    # that suit drawn numbers only make worse, and between them as the plan's predicted loss is


def refuse_no_share(name: str, value: float | None) -> None:
    """Raise BadSettings where a setting is given and is not between 0 and 1."""
    if value is not None and not 0 <= value <= 1:
        raise BadSettings(f"{name} is {value:g}, but must be between 0 and 1")


def refuse_too_many(workers: int, rows: int) -> None:
    """Raise BadSettings where some of the workers would have no row to train on."""
    if rows < workers:
        raise BadSettings(
            f"workers is {workers}, but there are {rows:,} rows to train on; "
            f"ask for {rows:,} or fewer"
        )
