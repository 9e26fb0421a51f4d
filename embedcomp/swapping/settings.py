"""Settings of tuning, and of holding predicted losses against measured ones."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict

from embedcomp.errors import BadSettings
from embedcomp.support.fields import refuse_below
from embedcomp.train.settings import TrainSettings, refuse_no_share

CLEAR = 2.0  # standard errors by which an increase differs from none
FEWEST_RANKED = 3  # options, below which a rank correlation says nothing


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a compressed model is tuned, and how the control is trained on."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: int = 0  # of distillation after compressing; 0: not tuned
    learning_rate: float = 1e-3  # at the start; falls linearly to zero
    table_learning_rate: float = 5e-5  # of the tables' codes, likewise
    embedding_l2: float = 0.0
    distil: float | None = None  # weight of the original's scores against the labels: 0 is the
    # labels alone, 1 the scores alone; None: chosen by short probes
    batch_rows: int = 0  # of a step; 0: as in TrainSettings
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_below(self, epochs=0, batch_rows=0)
        refuse_below(self, learning_rate=0, table_learning_rate=0, embedding_l2=0)
        refuse_no_share("distil", self.distil)

    def training(self) -> TrainSettings:
        """The settings of the trainer that tunes."""
        return TrainSettings(
            epochs=self.epochs,
            batch_rows=self.batch_rows,
            learning_rate=self.learning_rate,
            table_learning_rate=self.table_learning_rate,
            embedding_l2=self.embedding_l2,
            schedule="linear",
            evaluations_per_epoch=1,
            distil=self.distil,
            precision="float32",  # the differences to be learnt are smaller than bfloat16's steps
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Which options are measured, and on what."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    options: int = 60  # of all layers together, or as many as there are
    rows: int = 200_000  # of the split, at most
    split: str = "valid"  # that is scored; train lacks what a model that is fitted too closely adds
    least: float = 0.0  # predicted increase from which options are taken while there are enough;
    # 0: twice its standard error on so many rows, since what is smaller drowns in the labels' noise
    seed: int = 0  # equal seeds take equal options

    def __post_init__(self) -> None:
        if self.options < FEWEST_RANKED:
            raise BadSettings(f"options is {self.options}, but at least {FEWEST_RANKED} are ranked")
        if self.rows < 2:
            raise BadSettings(f"rows is {self.rows}, but a standard error takes at least 2")
        if self.least < 0:
            raise BadSettings(f"least is {self.least:g}, but a predicted increase is 0 or more")

    def smallest(self, rows: int) -> float:
        """`least`, or x = CLEAR sqrt(2 x / rows) where it is 0.

        Where the original is calibrated, an option that moves the logit by m adds E[p(1-p) m^2] / 2
        to the mean loss, and E[p(1-p) m^2], twice that, is the variance of one row's increase.
        """
        return self.least or 2 * CLEAR**2 / rows
