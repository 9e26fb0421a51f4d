"""Where a model comes from: one of ours with its settings, or the user's own factory."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from embedcomp import models
from embedcomp.errors import BadModel
from embedcomp.log.features import Features
from embedcomp.log.schema import first_problem, unknown_setting
from embedcomp.train.checkpoint import read


class ModelSource(BaseModel):
    """`model` names a file of embedcomp.models, or a factory as package.module:function.

    A factory takes the log's Features, or nothing, and returns an nn.Module whose forward takes
    dense float32 [B, D] and a KeyedJaggedTensor and gives logits [B] or [B, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    settings: dict[str, Any] = {}  # of one of our models

    def build(self, features: Features, seed: int = 0) -> nn.Module:
        """The model with fresh weights.

        Raises:
            BadModel: the factory cannot be imported or does not return a module.
            BadSettings: there is no such model.
        """
        torch.manual_seed(seed)
        if ":" in self.model:
            return _from_factory(self.model, features)
        file = models.get(self.model)
        model: nn.Module = file.build(features, self._model_settings(file.Settings))
        return model

    def _model_settings(self, settings: type[Any]) -> Any:
        unknown = unknown_setting(settings, self.settings)
        if unknown:
            raise BadModel(f"{self.model} has {unknown}")
        try:
            return TypeAdapter(settings).validate_python(self.settings)
        except ValidationError as error:
            raise BadModel(f"settings of {self.model}: {first_problem(error)}") from error

    def complete(self) -> ModelSource:
        """This source with every setting written out, so that defaults may change later."""
        if ":" in self.model:
            return self
        settings = asdict(self._model_settings(models.get(self.model).Settings))
        return ModelSource(model=self.model, settings=settings)

    def build_empty(self, features: Features) -> nn.Module:
        """The model without memory for its weights, to be filled by load_state_dict(assign=True).

        A model with buffers outside its state_dict is built for real: nothing else fills them.
        """
        with torch.device("meta"):
            model = self.build(features)
        stored = model.state_dict()
        lost = [name for name, _ in model.named_buffers() if name not in stored]
        return self.build(features) if lost else model


def load_weights(model: nn.Module, file: Path) -> list[str]:
    """Fill a model from a .safetensors file or a torch state dict (read with weights_only).

    A table with as many rows as the model's own but for the two reserved ones (unknown, null)
    gets its mean row for these. Returns the names of tables that were extended so.

    Raises:
        BadModel: the file is not readable, or its tensors are not the model's.
    """
    stored = _read_tensors(file)
    extended = []
    for name, wanted in model.state_dict().items():
        found = stored.get(name)
        if found is not None and _lacks_reserved_rows(found, wanted):
            mean = found.float().mean(0, keepdim=True).to(found.dtype)
            stored[name] = torch.cat([found, mean.expand(len(wanted) - len(found), -1)])
            extended.append(name)
    try:
        model.load_state_dict(stored)
    except RuntimeError as error:
        raise BadModel(f"{file} does not fit the model: {' '.join(str(error).split())}") from error
    return extended


def _lacks_reserved_rows(found: Tensor, wanted: Tensor) -> bool:
    return found.dim() == wanted.dim() == 2 and len(wanted) - len(found) == 2


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise BadModel(f"there is no checkpoint at {file}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise BadModel(f"{file} is not a safetensors file: {error}") from error
    state = read(file)
    state = state.get("state_dict", state)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _from_factory(name: str, features: Features) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    try:
        factory = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise BadModel(
            f"the model factory {name!r} cannot be imported ({error}); "
            "give package.module:function of a package that is installed or on PYTHONPATH"
        ) from error
    takes_features = bool(inspect.signature(factory).parameters)
    model = factory(features) if takes_features else factory()
    if not isinstance(model, nn.Module):
        raise BadModel(f"{name} returned {type(model).__name__}, but must return an nn.Module")
    return model
