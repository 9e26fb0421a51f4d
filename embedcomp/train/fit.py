"""Training: one loop for a new model, for a compressed one that is tuned, and for the control."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from embedcomp.log.batches import Batch, Shuffled, Taught
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.storage.training import Moved, Progress, Stage, parts_that_train
from embedcomp.support.metrics import Quality
from embedcomp.support.progress import State, quiet
from embedcomp.train import checkpoint, memory, probe, workers
from embedcomp.train.key import RunKey
from embedcomp.train.optim import OfRows, begin_anew, optimizers, set_learning_rate
from embedcomp.train.plateau import Plateau
from embedcomp.train.quality import quality
from embedcomp.train.settings import TrainSettings, refuse_too_many
from embedcomp.train.sharded import sharded_tables
from embedcomp.train.tables import fast_tables
from embedcomp.train.teacher import TeacherScores

EVALUATION_SHARE = 0.1  # of the time of training that evaluations may take
SCORING_COST = 1 / 4  # of a row, where training on it costs 1
MOST_EVALUATIONS = 8  # an epoch: each writes a checkpoint
WHICH_NARROWS = 1  # salt of the draw


@dataclass(frozen=True)
class Data:
    """What a run reads.

    share: of the rows of both splits, in runs at equal distances; an epoch goes over those alone.
    taught: folder of a teacher's scores; None: that of the run's checkpoints.
    """

    log: ClickLog
    features: Features
    train: str = "train"
    valid: str = "valid"
    share: float = 1.0
    taught: Path | None = None

    def pieces(self) -> tuple[list[Piece], list[Piece]]:
        """Pieces of the training split and of the validation split."""
        train, valid = (
            probe.sample(pieces, math.ceil(self.share * sum(piece.rows for piece in pieces)))
            for pieces in (self.log.pieces(self.train), self.log.pieces(self.valid))
        )
        return train, valid


@dataclass(frozen=True)
class Report:
    """State of a run, reported after each step and each evaluation."""

    epoch: int
    rows_done: int  # of this epoch, all workers
    rows_total: int
    loss: float
    factor: float  # of the learning rates
    valid: Quality | None = None  # after an evaluation
    step: str = "training"  # what the run is for; this and what follows is a `State`
    unit: str = "rows"

    @property
    def done(self) -> int:
        return self.rows_done

    @property
    def total(self) -> int:
        return self.rows_total

    @property
    def note(self) -> str:
        return f"epoch {self.epoch + 1}"

    @property
    def result(self) -> str:
        if self.valid is None:
            return ""
        return (
            f"epoch {self.epoch}, AUC {self.valid.auc:.5f}, log loss {self.valid.logloss:.5f}, "
            f"learning rate x {self.factor:.2g}"
        )


Watch = Callable[[Report], None]  # any watch of states is one


def fit(
    model: nn.Module,
    data: Data,
    settings: TrainSettings,
    folder: Path,
    *,
    teacher: nn.Module | None = None,
    watch: Watch = quiet,
    step: str = "training",
    stage: Stage = "final",
    far: float = 0.0,
) -> list[dict[str, Any]]:
    """Train `model` in place and leave it with the weights of its best validation AUC.

    A run that was killed goes on from its last checkpoint in `folder` when it is called again
    with the same arguments, by any number of workers. In a process group every worker trains its
    share of the log's rows and holds its share of the tables' rows.

    Args:
        folder: where checkpoints are kept, and what several workers trained, which they map; all of
            them have it, and the caller removes it once the model is saved.
        teacher: a model whose scores the run also imitates; it scores each row once, into a file
            in `folder`, and reads what the model reads.
        watch: is told a `Report` after each step and each evaluation.
        step: what the run is for, as its reports say.
        stage: as modules that train by themselves are told (storage/training.py).
        far: how far the model begins from where it will end; 1 and more: as far as can be, which
            it also is where a part of it says so. Rates that are left open are in proportion.

    Returns:
        One entry an evaluation: epoch, rows, AUC and log loss on the validation split.
    """
    pieces = data.pieces()
    rows = sum(piece.rows for piece in pieces[0])
    refuse_too_many(workers.count(), rows)
    workers.follow_first([*model.parameters(), *model.buffers()])
    splits = data.train, data.valid
    if any(part.begins_far for part in parts_that_train(model)):
        far = 1.0
    settings = settings.begun(far)
    key = RunKey.of(
        model, data.log, splits, data.features, settings, teacher, stage, share=data.share
    )
    name, settings = key.name, settings.for_rows(rows // workers.count())
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(memory.freed_is_kept())
        taught = None
        if teacher is not None and settings.epochs:
            taught = _taught(teacher, data, data.taught or folder, watch)
        stack.enter_context(_in_fast_form(model, folder / name))
        file = folder / f"{name}.probes.json"
        settings, chosen = _with_weights(model, data, settings, taught, file, watch, stage)
        run = _Run(model, pieces, data, settings, folder / name, taught, step, stage)
        run.resume()
        run.train(watch)
        run.take_best()
    history = run.plateau.history
    chosen |= {"rate_factor": settings.rate_factor}
    return [history[0] | chosen, *history[1:]] if history else []


def _in_fast_form(model: nn.Module, place: Path) -> AbstractContextManager[nn.Module]:
    return fast_tables(model) if workers.count() == 1 else sharded_tables(model, place)


def _taught(teacher: nn.Module, data: Data, folder: Path, watch: Watch) -> TeacherScores:
    """The teacher's scores of the training split."""

    def told(state: State) -> None:
        watch(Report(0, state.done, state.total or 0, math.nan, 1.0, step=state.step))

    return TeacherScores.of(teacher, data.log, data.train, data.features, folder, told)


def _with_weights(
    model: nn.Module,
    data: Data,
    settings: TrainSettings,
    taught: Taught | None,
    file: Path,
    watch: Watch,
    stage: Stage,
) -> tuple[TrainSettings, dict[str, Any]]:
    """Settings with the weights that were left to probes, and what the history tells of those.

    Args:
        file: keeps the probes that are done.
    """
    history: dict[str, Any] = {}
    left_open = probe.left_open(settings, taught is not None)
    for weight in left_open:
        settings = weight.set(settings, weight.usual)
    for weight in left_open:
        found, probes = _weight(weight, model, data, settings, taught, file, watch, stage)
        settings = weight.set(settings, found)
        history |= {weight.setting: found}
        if probes:
            history["probes"] = history.get("probes", []) + [asdict(one) for one in probes]
    return settings, history


def _weight(
    weight: probe.Weight,
    model: nn.Module,
    data: Data,
    settings: TrainSettings,
    taught: Taught | None,
    file: Path,
    watch: Watch,
    stage: Stage,
) -> tuple[float, list[probe.Probe]]:
    """The value of one weight, and the probes that chose it: none where they would not tell.

    Args:
        settings: of the run, with what is chosen later as it usually is.
    """
    train, valid = data.pieces()
    rows = weight.rows_of(sum(piece.rows for piece in train))
    if not settings.probes or rows < max(probe.FEWEST, workers.count()):
        return weight.usual, []
    few = probe.sample(train, rows), probe.sample(valid, -(-rows // 2))

    def trained(value: float) -> Quality:
        how = weight.set(weight.probing(settings, rows), value)
        copied = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            run = _Run(copied, few, data, how, None, taught, stage=stage)
            step = f"trying {weight.setting} of {value:g}"
            run.train(lambda report: watch(replace(report, step=step, valid=None)))
        settled = run.best.rows > 0  # what never is has no best evaluation
        return run.best if settled and how.schedule != "linear" else run.last

    probes = probe.Probes(weight.setting, trained, file)
    return weight.choose(probes), probes.done


class _Run:
    """One training run; checkpoint.py says which of its fields outlive the process.

    Args:
        pieces: to train and to validate on.
        place: of its checkpoints, but for their suffixes; None: it keeps none.
        taught: gives the logits of the teacher that it imitates.
        step: what the run is for.
    """

    def __init__(
        self,
        model: nn.Module,
        pieces: tuple[list[Piece], list[Piece]],
        data: Data,
        settings: TrainSettings,
        place: Path | None,
        taught: Taught | None,
        step: str = "training",
        stage: Stage = "final",
    ):
        self.model, self.data, self.settings = model, data, settings
        self.rows, valid_rows = (sum(piece.rows for piece in split) for split in pieces)
        self.pieces, self.valid = (workers.share(split) for split in pieces)
        self.batches = -(-self.rows // (workers.count() * settings.batch_rows))  # an epoch
        self.shuffled = Shuffled(
            data.log, data.features, self.pieces, settings.batch_rows, taught=taught
        )
        self.evaluations = min(
            settings.evaluations_per_epoch or evaluations(self.rows, valid_rows), self.batches
        )
        self.plateau = _plateau(settings, self.evaluations)
        self.best = self.last = Quality()  # of the evaluations
        self.optimizers = optimizers(model, settings, round(self.rows / data.share))
        self.epoch = self.batch = 0
        self.loss = math.nan  # of the last batch
        self._trained, self._began = 0, perf_counter()  # since the last evaluation
        self._place, self._step_name, self._stage = place, step, stage
        self.parts = parts_that_train(model)
        self.narrowing = [part for part in self.parts if part.narrows]

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        last = self._file("last")
        if last is not None and last.exists():
            checkpoint.restore(self, last)
            workers.keep_in_first(self._summed())

    def train(self, watch: Watch) -> None:
        if self.settings.schedule == "linear" and not self.plateau.history:
            self._evaluate(watch)  # a model that is trained on may be best as it came
        while self.epoch < self.settings.epochs and not self.plateau.finished:
            self._train_epoch(watch)
            if self.batch == self.batches:
                self._end_epoch()
                self._evaluate(watch)

    def take_best(self) -> None:
        """Leave the model with the weights of its best evaluation."""
        best = self._file("best")
        if best is not None and best.exists():
            checkpoint.restore_weights(self, best)

    def _go_on_from_best(self) -> None:
        """Take back weights and optimizers; the place in the log stays."""
        best = self._file("best")
        if best is not None:
            checkpoint.restore_trained(self, best)
            workers.keep_in_first(self._summed())

    def _train_epoch(self, watch: Watch) -> None:
        settings = self.settings
        every = -(-self.batches // self.evaluations)
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
                self._save("last")
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
        at = replace(self._at(), rows=round(len(batch) / weight) if weight else 0)
        for part in self.parts:
            part.before_step(at)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, curvature = self._loss(batch)
        penalties = [penalty for part in self.parts if (penalty := part.penalty()) is not None]
        (sum(penalties, loss) * weight).backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                workers.sum_gradients(group["params"], sparse=isinstance(optimizer, OfRows))
            optimizer.step()
        at = replace(at, curvature=curvature)
        self._begin_anew([moved for part in self.parts for moved in part.after_step(at)])
        return float(loss.detach())

    def _at(self) -> Progress:
        steps = self.settings.epochs * self.batches
        step = self.epoch * self.batches + self.batch
        return Progress(self._stage, step, steps, self.batches, self.settings.seed)

    def _end_epoch(self) -> None:
        """What modules do after an epoch, with sums over all workers."""
        workers.sum_into_all(self._summed())
        at = self._at()
        self._begin_anew([moved for part in self.parts for moved in part.after_epoch(at)])
        self.epoch, self.batch = self.epoch + 1, 0

    def _begin_anew(self, moved: list[Moved]) -> None:
        begin_anew(self.optimizers, moved)

    def _summed(self) -> list[Tensor]:
        return [getattr(part, name) for part in self.parts for name in part.summed]

    def _loss(self, batch: Batch) -> tuple[Tensor, float]:
        """The mean log loss of a batch, and what `Progress.curvature` is."""
        logits, wanted = self._logits(batch), target(batch, self.settings.distil)
        loss = binary_cross_entropy_with_logits(logits, wanted)
        return loss + self._narrowed_loss(batch, logits), _curvature(logits, wanted)

    def _logits(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.in_bfloat16):
            logits: Tensor = self.model(batch.dense, batch.sparse).view(-1).float()
        return logits

    def _narrowed_loss(self, batch: Batch, logits: Tensor) -> Tensor | float:
        """Log loss against the model's own scores with one part narrowed, drawn for this step."""
        if not self.narrowing:
            return 0.0
        at = self._at()
        drawn = torch.randint(len(self.narrowing), (), generator=at.drawn(WHICH_NARROWS))
        with self.narrowing[int(drawn)].narrowed(at):
            return binary_cross_entropy_with_logits(self._logits(batch), logits.detach().sigmoid())

    def _evaluate(self, watch: Watch) -> None:
        data = self.data
        speed = self._trained / max(perf_counter() - self._began, 1e-9)
        kept = {id(tensor) for tensor in self._summed()}
        buffers = (tensor for tensor in self.model.buffers() if id(tensor) not in kept)
        workers.follow_first(buffers)  # means of a batch norm are a worker's own
        found = quality(self.model, data.log, data.features, self.valid, in_step=True)
        valid = workers.total(found)
        settled = all(part.settled for part in self.parts)
        better, cut = self.plateau.see(self.epoch, valid, settled, rows_per_second=round(speed))
        self.last = valid
        if better:
            self.best = valid
            self._save("best")
        if cut:
            self._go_on_from_best()
        self._save("last")
        self._trained, self._began = 0, perf_counter()
        watch(replace(self._report(), valid=valid))

    def _set_learning_rate(self) -> None:
        set_learning_rate(self.optimizers, self._factor())

    def _factor(self) -> float:
        """The present factor of the learning rates."""
        if self.settings.schedule == "plateau":
            return self.plateau.learning_rate_factor
        done = self.epoch + self.batch / self.batches
        return max(0.0, 1 - done / self.settings.epochs)

    def _save(self, kind: str) -> None:
        file = self._file(kind)
        workers.sum_into_first(self._summed())  # its state alone is kept
        if file is not None:
            checkpoint.save(self, file)

    def _file(self, kind: str) -> Path | None:
        return self._place and self._place.with_suffix(f".{kind}.pt")

    def _report(self) -> Report:
        done = min(self.rows, self.batch * self.settings.batch_rows * workers.count())
        return Report(self.epoch, done, self.rows, self.loss, self._factor(), step=self._step_name)


def target(batch: Batch, distil: float | None) -> Tensor:
    """What a student's scores are held against: labels, and with weight `distil` a teacher's."""
    if batch.taught is None:
        return batch.labels
    assert distil is not None, "a run with a teacher has a weight"
    return torch.lerp(batch.labels, batch.taught.sigmoid(), distil)


@torch.no_grad()
def _curvature(logits: Tensor, wanted: Tensor) -> float:
    """Sum of p (1 - p) over that of (p - wanted)^2, p the probability of a logit."""
    p = logits.sigmoid()
    spread, squares = (p * (1 - p)).sum(), (p - wanted).square().sum()
    return float(spread / squares.clamp_min(torch.finfo(torch.float32).tiny))


def evaluations(train_rows: int, valid_rows: int) -> int:
    """How often an epoch is evaluated: as often as it is cheap, by rows, so that runs repeat."""
    cheap = EVALUATION_SHARE * train_rows / (SCORING_COST * valid_rows)
    return min(max(1, int(cheap)), MOST_EVALUATIONS)


def _plateau(settings: TrainSettings, evaluations: int) -> Plateau:
    """A linear schedule ends with its epochs, whatever the AUC does on the way."""
    linear = settings.schedule == "linear"
    return Plateau(
        patience=(settings.epochs + 2 if linear else settings.patience) * evaluations,
        cuts=settings.cuts,
        min_rise=settings.min_rise,
        max_fall=math.inf if linear else settings.max_fall,
    )
