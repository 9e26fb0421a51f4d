"""Training of a compressed model through its stored form: in full, or a short distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from embedcomp.support.progress import Watch
from embedcomp.swapping.settings import TuneSettings
from embedcomp.swapping.swap import freeze, thaw
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings

FLOATS = 0.5  # of a run, in which what begins far from where it will end is not rounded


def train_form(
    compressed: nn.Module,
    teacher: nn.Module | None,
    data: Data,
    settings: TrainSettings,
    folder: Path,
    watch: Watch,
    step: str = "training the compressed form",
    *,
    far: float = 0.0,
) -> list[dict[str, Any]]:
    """Train `compressed` in place; its numbers are rounded as they will be served.

    Args:
        teacher: the original, whose scores are learnt beside the labels; None: labels alone are,
            from drawn numbers.
        far: how far it begins from where it will end, as `fit` is told.

    Returns:
        The history of evaluations.
    """
    thaw(compressed, FLOATS)
    history = fit(
        compressed,
        data,
        settings,
        folder,
        teacher=teacher,
        watch=watch,
        step=step,
        far=far if teacher is not None else 1.0,  # its numbers are drawn
    )
    freeze(compressed)
    return history


def tune(
    compressed: nn.Module,
    original: nn.Module,
    data: Data,
    settings: TuneSettings,
    folder: Path,
    watch: Watch,
) -> list[dict[str, Any]]:
    """Distil the original into `compressed`, in place.

    Returns:
        The history of evaluations; the first is the compressed model before tuning.
    """
    how = settings.training()
    return train_form(compressed, original, data, how, folder, watch, "tuning")


def control(
    original: nn.Module, data: Data, settings: TuneSettings, folder: Path, watch: Watch
) -> list[dict[str, Any]]:
    """Train `original` on in place for the same epochs: what tuning alone would have brought."""
    how = settings.training()
    return fit(original, data, how, folder, watch=watch, step="training the control")
