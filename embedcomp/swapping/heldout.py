"""Rows that a compressed model is held against its original on, and what is mended there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor, nn

from embedcomp.errors import BadLog, BadModel
from embedcomp.planning.plan import Outcome
from embedcomp.sensitivity.statistics import Score
from embedcomp.support.metrics import Quality, auc_fall
from embedcomp.support.progress import Counter, Watch, quiet
from embedcomp.swapping.lastbias import add_to_bias, last_bias


@dataclass(frozen=True)
class HeldOut:
    """Rows on which compressed models are compared with their original.

    where: the rows' split, for a person.
    score: logits of a batch.
    inputs: of each batch, as `score` takes them.
    labels: 0 or 1, float32 [n].
    original: the original's logits, float64 [n].
    """

    where: str
    score: Score
    inputs: Sequence[Any]
    labels: np.ndarray
    original: np.ndarray

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[tuple[Any, Tensor]],
        score: Score,
        where: str,
        watch: Watch = quiet,
    ) -> HeldOut:
        """The rows of some batches, each its inputs and its labels, scored by the original.

        Raises:
            BadModel: there is no row, a batch is no pair, or rows are not as many as labels.
        """
        pairs = list(batches)
        if not pairs:
            raise BadModel(f"there was no {where} row to score the model on; give at least one")
        for i, pair in enumerate(pairs):
            if not (isinstance(pair, tuple | list) and len(pair) == 2 and torch.is_tensor(pair[1])):
                raise BadModel(f"batch {i} is no pair of inputs and labels; give (inputs, labels)")
        inputs = [inputs for inputs, _ in pairs]
        labels = np.concatenate([labels.view(-1).float().numpy() for _, labels in pairs])
        counter = Counter(watch, "scoring the original", len(inputs), "batches")
        original = logits(model, score, counter.over(inputs))
        if len(original) != len(labels):
            raise BadModel(
                f"the batches have {len(labels):,} labels, but the model gives {len(original):,} "
                "scores; give a label a row, and a score that returns a logit a row"
            )
        return cls(where, score, inputs, labels, original)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def quality(self) -> Quality:
        """Quality of the original."""
        return self._quality(self.original)

    def first(self, rows: int) -> HeldOut:
        """The first batches, with at least so many rows if there are."""
        sizes = np.cumsum([len(one) for one in self.inputs])
        number = int(np.searchsorted(sizes, rows)) + 1
        end = int(sizes[min(number, len(sizes)) - 1])
        inputs = self.inputs[:number]
        return replace(self, inputs=inputs, labels=self.labels[:end], original=self.original[:end])

    def quality_of(self, compressed: nn.Module) -> Quality:
        """A compressed model's quality on the rows."""
        return self._quality(logits(compressed, self.score, self.inputs))

    def compared(self, compressed: nn.Module) -> tuple[Outcome, Quality]:
        """What a compressed model loses on the rows, and its quality there."""
        scored = logits(compressed, self.score, self.inputs)
        return self._outcome(scored), self._quality(scored)

    def keep_mean_(self, compressed: nn.Module) -> tuple[Outcome, Quality]:
        """Fit the last bias of a model, in place, so that its mean score is the original's.

        Returns:
            What the model loses on the rows, and its quality there once the bias is fitted.

        Raises:
            CannotStore: the sum does not fit the bias' storage.
        """
        scored, wanted = logits(compressed, self.score, self.inputs), expit(self.original)
        with _evaluated(compressed):
            bias, shift = last_bias(compressed, self.score, self.inputs[0]), 0.0
        if bias:
            shift = _shift(scored, self.original)
            add_to_bias(compressed, bias, shift)
        off = expit(scored + shift) - wanted
        error = float(off.std() / math.sqrt(len(off)) / wanted.mean())
        outcome = replace(self._outcome(scored), bias=bias, shift=shift, score_error=error)
        return outcome, self._quality(scored + shift)

    def _outcome(self, scored: np.ndarray) -> Outcome:
        fall = auc_fall(self.labels, self.original, scored)
        rows, where = len(self), self.where
        return Outcome(rows=rows, where=where, auc_loss=fall.value, auc_error=fall.error)

    def refuse_one_kind(self) -> None:
        """Raise BadLog where the rows are too few to tell how far off a measured AUC is."""
        clicked = int((self.labels > 0.5).sum())
        others = len(self) - clicked
        if min(clicked, others) < 2:
            raise BadLog(
                f"a loss of AUC cannot be measured on {clicked:,} clicked and {others:,} other "
                f"{self.where} rows; give at least two of each kind"
            )

    def _quality(self, scored: np.ndarray) -> Quality:
        found = Quality()
        found.add(scored.astype(np.float32), self.labels)
        return found


def _shift(scored: np.ndarray, original: np.ndarray) -> float:
    """What to add to logits [n] so that the mean probability is that of the original's [n]."""
    wanted = expit(original).mean()
    most = float(np.abs(scored).max() + np.abs(original).max()) + 1  # beyond it, all are above
    found = brentq(lambda shift: expit(scored + shift).mean() - wanted, -most, most, xtol=1e-9)
    return float(found)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training


@torch.no_grad()
def logits(model: nn.Module, score: Score, inputs: Iterable[Any]) -> np.ndarray:
    """Logits of all batches in evaluation mode, float64 [n]; the model is left as it was.

    Raises:
        BadModel: a score is not a finite number.
    """
    with _evaluated(model):
        parts = [score(model, one).view(-1).double().numpy() for one in inputs]
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        rows = np.flatnonzero(~np.isfinite(found))
        raise BadModel(
            f"the model's scores of {len(rows):,} of {len(found):,} rows are no finite numbers "
            f"(the first is row {rows[0]:,}); look for weights or inputs that are not"
        )
    return found
