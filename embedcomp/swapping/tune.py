"""A short distillation of the compressed model from the original, through the stored form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from embedcomp.support.progress import Watch
from embedcomp.swapping.settings import TuneSettings
from embedcomp.swapping.swap import freeze, thaw
from embedcomp.train.fit import Data, fit


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
    how = settings.training()
    history = fit(compressed, data, how, folder, teacher=original, watch=watch, step="tuning")
    freeze(compressed)
    return history


def control(
    original: nn.Module, data: Data, settings: TuneSettings, folder: Path, watch: Watch
) -> list[dict[str, Any]]:
    """Train `original` on in place for the same epochs: what tuning alone would have brought."""
    how = settings.training()
    return fit(original, data, how, folder, watch=watch, step="training the control")
