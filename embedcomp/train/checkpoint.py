"""Checkpoints of a run: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import nn

from embedcomp.errors import BadModel
from embedcomp.support.files import replacing
from embedcomp.train.plateau import Plateau


class Run(Protocol):
    """The state that a checkpoint holds."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    plateau: Plateau
    epoch: int
    batch: int


def save(run: Run, file: Path) -> None:
    """Write the whole state of a run."""
    state = {
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "plateau": asdict(run.plateau),
        "position": [run.epoch, run.batch],
        "random": torch.get_rng_state(),
    }
    with replacing(file) as fresh:
        torch.save(state, fresh)


def restore(run: Run, file: Path) -> None:
    """Take the state of a run back, so that it goes on as if it had never stopped."""
    state = restore_trained(run, file)
    run.plateau = Plateau(**state["plateau"])
    run.epoch, run.batch = state["position"]
    torch.set_rng_state(state["random"])


def restore_trained(run: Run, file: Path) -> dict[str, Any]:
    """Take back the model's weights and the optimizers; gives the whole state."""
    state = read(file)
    run.model.load_state_dict(state["model"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state


def restore_weights(run: Run, file: Path) -> None:
    """Take back the model's weights alone."""
    run.model.load_state_dict(read(file)["model"])


def read(file: Path) -> dict[str, Any]:
    """A file of tensors, read without running any code that it may hold.

    Raises:
        BadModel: it is not such a file.
    """
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise BadModel(f"{file} cannot be read as tensors: {str(error).splitlines()[0]}") from error
    return state
