"""What a log says about a model's layers: sums over its rows, so that shards add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from embedcomp.compress.contract import Layer, LinearStatistics, TableSpec, TableStatistics
from embedcomp.compress.layers import Found
from embedcomp.log.batches import Batch
from embedcomp.served.table import bag_bounds, kept, pooled_weights

SAMPLES = "samples"

Score = Callable[[nn.Module, Any], Tensor]  # a model and a batch's inputs to logits [B]


@dataclass
class Statistics:
    """Sums over a log in float64, by "layer|what".

    For a linear layer: `rows` (of its input), `x` [i] and `xx` [i, i]. For every layer: `gradient`
    [o, o], the sum of p (1 - p) dz/dy dz/dy^T at its output y (the Gauss-Newton matrix of the log
    loss, z the logit and p the probability); for a pooled table it is scaled so that independent
    errors of the rows in a bag add up. Where ids were counted, a table also has `counts` [rows].
    `samples` counts the log's rows.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)

    def __iadd__(self, other: Statistics) -> Statistics:
        for name, value in other.sums.items():
            self.add(name, value)
        return self

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.double()

    @property
    def samples(self) -> int:
        return int(self.sums.get(SAMPLES, torch.zeros(())).item())

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, as safetensors keeps them."""
        return dict(self.sums)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Statistics:
        return cls(dict(tensors))

    def measured(self, found: Found) -> Found:
        """The layers with their statistics; those that no row of the log reached are refused."""
        if not self.samples:
            return found
        layers, refused = {}, dict(found.refused)
        for name, layer in found.layers.items():
            if f"{name}|gradient" in self.sums:
                layers[name] = self._measured(name, layer)
            else:
                refused[name] = "is not called, or does not change the score, on any row of the log"
        return Found(layers, refused)

    def _measured(self, name: str, layer: Layer) -> Layer:
        gradient = self.sums[f"{name}|gradient"] / self.samples
        if isinstance(layer.statistics, TableStatistics):
            counts = self.sums.get(f"{name}|counts", layer.statistics.counts)
            table = TableStatistics(counts, gradient)
            return replace(layer, statistics=table, _shared={})
        rows = self.sums[f"{name}|rows"]
        mean, second = self.sums[f"{name}|x"] / rows, self.sums[f"{name}|xx"] / rows
        return replace(layer, statistics=LinearStatistics(mean, second, gradient), _shared={})


def score_batch(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B] of one of our own models."""
    logits: Tensor = model(batch.dense, batch.sparse)
    return logits.view(-1)


def measure(
    model: nn.Module,
    inputs: Iterable[Any],
    found: Found,
    score: Score = score_batch,
    *,
    count_ids: bool = False,
) -> Statistics:
    """Run the model over batches and sum up what its layers see and what their outputs matter.

    Products of one batch are in float32, their sums in float64. The model is left as it was.

    Args:
        count_ids: count the rows that are looked up too: where no log has counted them.
    """
    statistics = Statistics()
    with _watched(model, found, statistics, count_ids), torch.enable_grad():
        for batch in inputs:
            logits = score(model, batch).view(-1)
            p = torch.sigmoid(logits.detach())
            if logits.requires_grad:
                (logits * (p * (1 - p)).sqrt()).sum().backward()
            statistics.add(SAMPLES, torch.tensor(len(logits)))
    return statistics


@contextmanager
def _watched(
    model: nn.Module, found: Found, statistics: Statistics, count_ids: bool
) -> Iterator[None]:
    """In evaluation mode, without gradients of parameters, and with a hook on every layer."""
    was_training = {module: module.training for module in model.modules()}
    needed = {p: p.requires_grad for p in model.parameters()}
    hooks = []
    for name, layer in found.layers.items():
        hook = _Watch(statistics, name, layer, count_ids)
        hooks.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for handle in hooks:
            handle.remove()
        for parameter, flag in needed.items():
            parameter.requires_grad_(flag)
        for module, training in was_training.items():
            module.training = training


@dataclass(frozen=True)
class _Watch:
    """Forward hook of one layer: sums up its input, and its output's gradient once it is known."""

    statistics: Statistics
    name: str
    layer: Layer
    count_ids: bool

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        scale = None
        if isinstance(self.layer.spec, TableSpec):
            scale = _bag_scale(self.layer.spec, *args, **kwargs)
            if self.count_ids:
                self._count((args[0] if args else kwargs["input"]).reshape(-1))
        else:
            self._add_input((args[0] if args else kwargs["input"]).detach().flatten(0, -2))
        if not output.requires_grad:  # the graph begins here; what follows may work in place
            output = output.detach().requires_grad_().clone()
        output.register_hook(partial(self._add_gradient, scale))
        return output

    def _add_input(self, x: Tensor) -> None:
        self.statistics.add(f"{self.name}|rows", torch.tensor(len(x)))
        self.statistics.add(f"{self.name}|x", x.sum(0))
        self.statistics.add(f"{self.name}|xx", x.T @ x)

    def _count(self, ids: Tensor) -> None:
        assert isinstance(self.layer.spec, TableSpec)
        if self.layer.spec.padding_idx is not None:
            ids = ids[ids != self.layer.spec.padding_idx]
        name = f"{self.name}|counts"
        if name not in self.statistics.sums:
            self.statistics.add(name, torch.zeros(self.layer.spec.rows))
        counts = self.statistics.sums[name]
        counts.index_add_(0, ids, torch.ones(len(ids), dtype=counts.dtype))

    def _add_gradient(self, scale: Tensor | None, g: Tensor) -> None:
        g = g.flatten(0, -2)
        weighted = g if scale is None else g * scale
        self.statistics.add(f"{self.name}|gradient", weighted.T @ g)


def _bag_scale(
    spec: TableSpec,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor | None:
    """What to weigh each bag's gradient with, [B, 1]: the sum of its rows' squared shares."""
    if spec.pooling == "none":
        return None
    bounds = bag_bounds(input, offsets, spec.last_offset)
    weights = None if per_sample_weights is None else per_sample_weights.detach().reshape(-1)
    weights = kept(input.reshape(-1), weights, spec.padding_idx)
    if weights is not None and spec.pooling == "sum":
        return pooled_weights(weights.square(), bounds)
    lengths = bounds.diff()[:, None].float()
    if weights is not None:
        lengths = pooled_weights(weights, bounds)
    return lengths if spec.pooling == "sum" else torch.where(lengths > 0, 1 / lengths, 0.0)
