"""Runs that are killed and started again, held against one that was not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embedcomp.train.fit import Data, Report, fit
from embedcomp.train.settings import TrainSettings


class Killed(Exception):
    """Stands for kill -9 in the middle of a run."""


def without_seconds(entry: Any) -> Any:
    """A history's entry without what differs between equal runs."""
    if isinstance(entry, list):
        return [without_seconds(one) for one in entry]
    if not isinstance(entry, dict):
        return entry
    kept = {name for name in entry if name not in ("seconds", "rows_per_second")}
    return {name: without_seconds(entry[name]) for name in entry if name in kept}


def trained(
    model: nn.Module, data: Data, settings: TrainSettings, folder: Path, kill_after: int = -1
) -> list[Any]:
    """Train in place; the history, without what differs between equal runs.

    Raises:
        Killed: so many steps were taken.
    """
    steps = 0

    def watch(report: Report) -> None:
        nonlocal steps
        steps += report.valid is None
        if steps == kill_after:
            raise Killed

    history = fit(model, data, settings, folder, watch=watch)
    return [without_seconds(entry) for entry in history]


def trained_in_spite_of_kills(
    make: Callable[[], nn.Module],
    data: Data,
    settings: TrainSettings,
    folder: Path,
    kills: Sequence[int],
) -> tuple[nn.Module, list[Any]]:
    """A model and its history, which runs that are killed after so many steps end with as well."""
    whole = make()
    history = trained(whole, data, settings, folder / "whole")
    for kill_after in kills:
        place = folder / str(kill_after)
        with pytest.raises(Killed):
            trained(make(), data, settings, place, kill_after)
        resumed = make()
        assert trained(resumed, data, settings, place) == history
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name
    return whole, history
