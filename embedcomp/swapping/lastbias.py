"""The bias that is added to every logit: where a model has one, and adding to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from embedcomp.errors import BadModel
from embedcomp.sensitivity.statistics import Score
from embedcomp.storage.rows import Biased

PROBE = 1.0  # added to a bias to see whether every logit moves by as much
TOLERANCE = 0.01  # relative, since biases may be stored in 16 bits


@torch.no_grad()
def last_bias(model: nn.Module, score: Score, inputs: Any) -> str:
    """Name of a parameter or a stored bias of one number that is added to every logit; "": none.

    Whatever the model is made of, a number that moves the logits of all rows by what is added to
    it is such a bias. The model is left as it was.

    Args:
        inputs: one batch, in evaluation mode.
    """
    before = score(model, inputs).view(-1)
    for name, held in reversed(list(_numbers(model))):
        was = held.clone()
        add_to_bias(model, name, PROBE)
        moved = score(model, inputs).view(-1) - before
        _set(model, name, was)
        if torch.allclose(moved, torch.full_like(moved, PROBE), atol=TOLERANCE):
            return name
    return ""


@torch.no_grad()
def add_to_bias(model: nn.Module, name: str, value: float) -> None:
    """Add to one of the numbers that `last_bias` names, in place.

    Raises:
        BadModel: the model has none of this name.
        CannotStore: the sum does not fit the bias' storage.
    """
    held = dict(_numbers(model)).get(name)
    if held is None:
        raise BadModel(f"the plan adds to a bias {name!r}, which this model does not have")
    _set(model, name, held + value)


def _numbers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and stored biases of one number, by name."""
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, Biased):
            if module.bias is not None and module.bias.numel() == 1:
                yield f"{dot}bias", module.bias
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.numel() == 1 and parameter.is_floating_point():
                yield dot + name, parameter


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    prefix, _, last = name.rpartition(".")
    module = model.get_submodule(prefix)
    if isinstance(module, Biased):
        module.set_bias(value)
    else:
        module.get_parameter(last).copy_(value)
