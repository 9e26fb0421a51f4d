"""Finding the layers of a model that can be compressed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, cast

import numpy as np
import torch
import torchrec.quant.embedding_modules as quantized
from torch import Tensor, nn
from torchrec.distributed.types import ShardedModule
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.fused_embedding_modules import (
    FusedEmbeddingBagCollection,
    FusedEmbeddingCollection,
)

from embedcomp.log.vocabulary import RESERVED
from embedcomp.modules.linear import ServedLinear
from embedcomp.modules.table import CompressedTable
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    LinearStatistics,
    TableSpec,
    TableStatistics,
)

_ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
_PASSED_OVER = (nn.Dropout, nn.Identity)
_TABLES = (nn.EmbeddingBag, nn.Embedding)


@dataclass(frozen=True)
class Found:
    """What can be compressed, by module name, and why the rest cannot."""

    layers: dict[str, Layer]
    refused: dict[str, str]


def find(model: nn.Module, counts: Mapping[str, np.ndarray | Tensor]) -> Found:
    """The tables and linear layers of a model.

    Args:
        counts: by feature, times each row of its table is looked up in the log.
    """
    tied, features, activations = _tied(model), _features(model), _activations(model)
    layers: dict[str, Layer] = {}
    refused: dict[str, str] = {}
    closed: list[str] = []  # modules whose parts are not looked at
    for name, module in model.named_modules():
        if any(name.startswith(f"{other}." if other else "") for other in closed):
            continue
        refusal = _whole(module)
        if refusal:
            refused[name] = refusal
            closed.append(name)
        if refusal or not module._parameters:
            continue
        reason = tied.get(id(module)) or _reason(module)
        if not name and not reason:
            reason = "is the model itself; put it into an nn.Sequential and give that"
        if reason:
            refused[name] = reason
        elif isinstance(module, nn.Linear):
            layers[name] = _linear(name, module, activations.get(name))
        else:
            assert isinstance(module, _TABLES)
            layers[name] = _table(name, module, features.get(name, ()), counts)
    return Found(layers, refused)


def before_tuning(found: Found) -> Found:
    """These layers, to be tuned once they are compressed."""
    layers = {
        name: replace(layer, spec=replace(layer.spec, tuned=True))
        if isinstance(layer.spec, LinearSpec)
        else layer
        for name, layer in found.layers.items()
    }
    return replace(found, layers=layers)


def as_drawn(found: Found) -> Found:
    """These layers of a model that was not trained yet."""
    layers = {name: replace(layer, drawn=True) for name, layer in found.layers.items()}
    return replace(found, layers=layers)


def _linear(name: str, module: nn.Linear, activation: str | None) -> Layer:
    spec = LinearSpec(
        name=name,
        inputs=module.in_features,
        outputs=module.out_features,
        bias=module.bias is not None,
        activation=activation,
    )
    bias = None if module.bias is None else module.bias.detach()
    statistics = LinearStatistics.unmeasured(module.in_features)
    return Layer(spec, module.weight.detach(), bias, statistics)


def _table(
    name: str,
    module: nn.EmbeddingBag | nn.Embedding,
    features: tuple[str, ...],
    counts: Mapping[str, np.ndarray | Tensor],
) -> Layer:
    is_bag = isinstance(module, nn.EmbeddingBag)
    total = torch.zeros(module.num_embeddings, dtype=torch.float64)
    for feature in features:
        found = torch.as_tensor(counts.get(feature, ()), dtype=torch.float64)
        if len(found) == len(total):
            total += found
    spec = TableSpec(
        name=name,
        rows=module.num_embeddings,
        dim=module.embedding_dim,
        pooling=cast(Literal["sum", "mean"], module.mode) if is_bag else "none",
        features=features,
        last_offset=bool(module.include_last_offset) if is_bag else True,
        padding_idx=module.padding_idx,
    )
    weight = module.weight.detach()
    if module.max_norm is not None and not weight.is_meta:  # what a look-up would shrink it to
        weight = torch.renorm(weight, module.norm_type, 0, module.max_norm)
    return Layer(counted(spec, total), weight, None, TableStatistics(total))


def counted(spec: TableSpec, counts: Tensor) -> TableSpec:
    """The table with what its counts [rows] say; all 0: they are not known."""
    known = bool(counts.any())
    falling = known and bool((counts[RESERVED:].diff() <= 0).all())
    return replace(spec, counted=known, by_count=falling)


def _features(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Features that read a table of a torchrec collection, by the table's module name."""
    found: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if type(module) is EmbeddingBagCollection:
            for config in module.embedding_bag_configs():
                found[f"{prefix}embedding_bags.{config.name}"] = tuple(config.feature_names)
        elif type(module) is EmbeddingCollection:
            for table in module.embedding_configs():
                found[f"{prefix}embeddings.{table.name}"] = tuple(table.feature_names)
    return found


def _activations(model: nn.Module) -> dict[str, str]:
    """Activations that follow a linear layer within an nn.Sequential, by the layer's name."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            children = [c for c in module.named_children() if not isinstance(c[1], _PASSED_OVER)]
            for (child, linear), (_, follower) in pairwise(children):
                if isinstance(linear, nn.Linear) and type(follower) in _ACTIVATIONS:
                    found[f"{name}.{child}".lstrip(".")] = _ACTIVATIONS[type(follower)]
    return found


def _tied(model: nn.Module) -> dict[int, str]:
    """Reasons for modules that are used under two names or share a weight, by the module's id."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    reasons = {
        place: f"is the same module as {' and '.join(others[1:])}; one swap would not reach both"
        for place, others in names.items()
        if len(others) > 1
    }
    owners = Counter(id(weight) for _, weight in _owned(model))
    for module, weight in _owned(model):
        if owners[id(weight)] > 1:
            reasons[id(module)] = "shares its weight with another module; swapping would untie them"
    return reasons


def _owned(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                yield module, parameter


def _whole(module: nn.Module) -> str | None:
    """Why nothing within a module can be swapped; None if its parts decide."""
    if isinstance(module, CompressedTable | ServedLinear):
        return "is compressed already"
    if isinstance(module, ShardedModule):
        return "is sharded; swap the layers of the model before it is sharded"
    if isinstance(module, quantized.EmbeddingBagCollection | quantized.EmbeddingCollection):
        return "is quantized already; swap the layers of the float model it was made from"
    if isinstance(module, FusedEmbeddingBagCollection | FusedEmbeddingCollection):
        return "keeps its rows in fbgemm's fused form; use torchrec's unfused collection instead"
    return None


def _reason(module: nn.Module) -> str | None:  # noqa: PLR0911 - one line a reason
    """Why a module that owns parameters cannot be swapped; None if it can."""
    kind, weight = type(module).__name__, module._parameters.get("weight")
    if type(module) not in (nn.Linear, *_TABLES):
        return f"is a {kind}, which is neither a table nor a linear layer; {_kept(module)}"
    if weight is None:
        return "computes its weight from other parameters"
    if weight.dtype != torch.float32:
        return f"holds {str(weight.dtype).removeprefix('torch.')}, and only float32 is read"
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        return "takes the maximum of its rows, which does not commute with decoding"
    if weight.is_meta:
        return None
    if not bool(torch.isfinite(weight).all()):
        return "holds values that are not finite"
    if isinstance(module, nn.Embedding) and _padding_shows(module):
        return f"gives something else than zeros for its padding_idx {module.padding_idx}"
    return None


def _kept(module: nn.Module) -> str:
    """What of a module's own parameters stays as it is."""
    own = [p for p in module._parameters.values() if p is not None]
    size = sum(parameter.nbytes for parameter in own)
    return f"{len(own)} of its parameters stay as they are, with {size:,} bytes"


def _padding_shows(module: nn.Embedding) -> bool:
    return module.padding_idx is not None and bool(module.weight[module.padding_idx].any())
