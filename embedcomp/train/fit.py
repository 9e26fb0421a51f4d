"""Training: one loop for a new model, for a compressed one that is tuned, and for the control."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from embedcomp.evaluate import quality
from embedcomp.log.batches import Batch, Shuffled
from embedcomp.log.click_log import ClickLog
from embedcomp.log.features import Features
from embedcomp.metrics import Quality
from embedcomp.train import checkpoint, memory, workers
from embedcomp.train.key import RunKey
from embedcomp.train.optim import OfRows, optimizers, set_learning_rate
from embedcomp.train.plateau import Plateau
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import fast_tables


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    log: ClickLog
    features: Features
    train: str = "train"
    valid: str = "valid"


@dataclass(frozen=True)
class Report:
    """State of a run, told after each step and each evaluation."""

    epoch: int
    rows_done: int  # of this epoch, all workers
    rows_total: int
    loss: float
    factor: float  # of the learning rates
    valid: Quality | None = None  # after an evaluation


Watch = Callable[[Report], None]


def fit(
    model: nn.Module,
    data: Data,
    settings: TrainSettings,
    folder: Path,
    *,
    teacher: nn.Module | None = None,
    watch: Watch = lambda report: None,
) -> list[dict[str, Any]]:
    """Train `model` in place and leave it with the weights of its best validation AUC.

    A run that was killed goes on from its last checkpoint in `folder` when it is called again
    with the same arguments. In a process group every worker trains its share of the rows.

    Args:
        folder: where checkpoints are kept; the caller removes it once the model is saved.
        teacher: the original model, whose scores the run also imitates.

    Returns:
        One entry an evaluation: epoch, rows, AUC and log loss on the validation split.
    """
    workers.refuse_too_many(workers.count(), data.log.rows(data.train))
    workers.follow_first([*model.parameters(), *model.buffers()])
    splits = data.train, data.valid
    name = RunKey.of(model, data.log, splits, data.features, settings, teacher).name
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(memory.freed_is_kept())
        stack.enter_context(fast_tables(model))
        if teacher is not None:
            stack.enter_context(fast_tables(teacher))
        run = _Run(model, data, settings, folder / name, teacher)
        run.resume()
        run.train(watch)
        run.take_best()
    return run.plateau.history


class _Run:
    """One training run; checkpoint.py says which of its fields outlive the process."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        settings: TrainSettings,
        place: Path,
        teacher: nn.Module | None,
    ):
        self.model, self.data, self.settings, self.teacher = model, data, settings, teacher
        pieces = data.log.pieces(data.train)
        self.pieces, self.valid = workers.share(pieces), workers.share(data.log.pieces(data.valid))
        self.rows = sum(piece.rows for piece in pieces)
        self.batches = -(-self.rows // (workers.count() * settings.batch_rows))  # an epoch
        self.shuffled = Shuffled(data.log, data.features, self.pieces, settings.batch_rows)
        self.plateau = _plateau(settings)
        self.optimizers = optimizers(model, settings, self.rows)
        self.epoch = self.batch = 0
        self.loss = math.nan  # of the last batch
        self._trained, self._began = 0, perf_counter()  # since the last evaluation
        self._last, self._best = place.with_suffix(".last.pt"), place.with_suffix(".best.pt")

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self._last.exists():
            checkpoint.restore(self, self._last)

    def train(self, watch: Watch) -> None:
        if self.settings.schedule == "linear" and not self.plateau.history:
            self._evaluate(watch)  # a model that is trained on may be best as it came
        while self.epoch < self.settings.epochs and not self.plateau.finished:
            self._train_epoch(watch)
            self.epoch, self.batch = self.epoch + 1, 0
            self._evaluate(watch)

    def take_best(self) -> None:
        """Leave the model with the weights of its best evaluation."""
        if self._best.exists():
            checkpoint.restore_weights(self, self._best)

    def _train_epoch(self, watch: Watch) -> None:
        settings = self.settings
        every = -(-self.batches // settings.evaluations_per_epoch)
        save_every = max(1, settings.checkpoint_rows // settings.batch_rows)
        for batch, weight in self._stream():
            self._set_learning_rate()
            self.loss = self._step(batch, weight)
            self.batch += 1
            self._trained += len(batch) * workers.count()
            watch(self._report())
            if self.batch == self.batches:
                return
            if self.batch % every == 0:
                self._evaluate(watch)
            elif self.batch % save_every == 0:
                self._save(self._last)
            if self.plateau.finished:
                return

    def _stream(self) -> Iterator[tuple[Batch, float]]:
        """What is left of the epoch, each batch with its share of the rows of all workers' batches.

        Shares of the log differ by one row. A worker that has no batch left where others have one
        of a single row repeats its last with a weight of 0.
        """
        own = -(-sum(piece.rows for piece in self.pieces) // self.settings.batch_rows)
        seed = self.settings.seed, self.epoch
        for batch in self.shuffled.batches(seed, skip=min(self.batch, own - 1)):
            yield batch, workers.weight(len(batch) if self.batch < own else 0)
        yield batch, workers.weight(0)

    def _step(self, batch: Batch, weight: float) -> float:
        self.model.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        (loss * weight).backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                workers.sum_gradients(group["params"], sparse=isinstance(optimizer, OfRows))
            optimizer.step()
        return float(loss.detach())

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.in_bfloat16):
            logits = self.model(batch.dense, batch.sparse).view(-1).float()
        target = batch.labels
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.eval()(batch.dense, batch.sparse).view(-1).sigmoid()
            target = torch.lerp(target, taught, self.settings.distil)
        return binary_cross_entropy_with_logits(logits, target)

    def _evaluate(self, watch: Watch) -> None:
        data = self.data
        speed = self._trained / max(perf_counter() - self._began, 1e-9)
        workers.follow_first(self.model.buffers())  # means of a batch norm are a worker's own
        valid = workers.total(quality(self.model, data.log, data.features, self.valid))
        better, cut = self.plateau.see(self.epoch, valid, rows_per_second=round(speed))
        if better:
            self._save(self._best)
        if cut:
            self.take_best()
        self._save(self._last)
        self._trained, self._began = 0, perf_counter()
        watch(replace(self._report(), valid=valid))

    def _set_learning_rate(self) -> None:
        set_learning_rate(self.optimizers, self._factor())

    def _factor(self) -> float:
        """Of the learning rates, now."""
        if self.settings.schedule == "plateau":
            return self.plateau.learning_rate_factor
        done = self.epoch + self.batch / self.batches
        return max(0.0, 1 - done / self.settings.epochs)

    def _save(self, file: Path) -> None:
        if workers.rank() == 0:
            checkpoint.save(self, file)
        workers.wait()

    def _report(self) -> Report:
        done = min(self.rows, self.batch * self.settings.batch_rows * workers.count())
        return Report(self.epoch, done, self.rows, self.loss, self._factor())


def _plateau(settings: TrainSettings) -> Plateau:
    """A linear schedule ends with its epochs, whatever the AUC does on the way."""
    patience = settings.patience if settings.schedule == "plateau" else settings.epochs + 2
    return Plateau(patience=patience, cuts=settings.cuts, min_rise=settings.min_rise)
