"""embedcomp trains a task by `fit`, which reads, encodes and shuffles the Parquet files itself."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.child import answer
from benchmarks.speed.task import Task
from embedcomp.artifact.source import ModelSource
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.train.fit import Data, Report, fit
from embedcomp.train.probe import USUAL_L2
from embedcomp.train.settings import TrainSettings

ENDLESS = 1_000_000  # epochs and patience: only the clock ends the run


class _Enough(Exception):
    """The task's steps are done."""


class _Clock:
    """A watch for `fit` that times training steps, the reading of their rows included.

    Evaluations on the validation split between two epochs are not training and not timed.
    """

    def __init__(self, task: Task):
        self._task, self._steps = task, 0
        self._last, self._rows_before = perf_counter(), 0
        self.seconds, self.rows = 0.0, 0

    def __call__(self, report: Report) -> None:
        now = perf_counter()
        if report.valid is None:
            self._steps += 1
            if self._steps > self._task.warm_up_steps:
                self.seconds += now - self._last
                self.rows += report.rows_done - self._rows_before
            self._rows_before = report.rows_done
        else:
            self._rows_before = 0
        self._last = now
        if self._steps == self._task.warm_up_steps + self._task.steps:
            raise _Enough


def main() -> None:
    task = Task.from_command_line()
    torch.set_num_threads(task.threads)
    features = Features.load(Path(task.folder) / "features")
    shape = {"width": task.width, "hidden": task.hidden, "dropout": task.dropout}
    if task.model == "dcnv2":
        shape["cross_layers"] = task.cross_layers
    model = ModelSource(model=task.model, settings=shape).build(features, task.seed)
    settings = TrainSettings(
        epochs=ENDLESS,
        patience=ENDLESS,
        max_fall=1.0,
        evaluations_per_epoch=1,
        embedding_l2=USUAL_L2,
        batch_rows=task.batch_rows,
        seed=task.seed,
    )
    clock = _Clock(task)
    with tempfile.TemporaryDirectory() as scratch, suppress(_Enough):
        fit(model, Data(ClickLog(task.log), features), settings, Path(scratch), watch=clock)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    answer(rows=clock.rows, seconds=clock.seconds, parameters=parameters)


if __name__ == "__main__":
    main()
