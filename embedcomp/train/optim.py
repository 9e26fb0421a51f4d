"""Adam for embedding tables: only the rows that a batch looked up are read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from embedcomp.log.features import Features
from embedcomp.served.table import CompressedTable
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import FlatTables, FusedAdagradTables


class LazyAdam(torch.optim.Optimizer):
    """Adam on the looked-up rows of parameters [rows, width] with sparse gradients.

    Moments of rows that were not looked up stay as they are (as in torch.optim.SparseAdam), and
    so does the step that corrects their bias: it is the table's.

    Args:
        params: parameters or groups; a group's `l2`, a number or float32 [rows, 1], times the row
            is added to the gradient of each looked-up row.
        lr: learning rate.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        l2: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(params, {"lr": lr, "l2": l2, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, sparse: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        ids, gradient = coalesced(sparse)  # [U], [U, width]
        rows = parameter.index_select(0, ids)
        l2 = group["l2"]
        gradient.add_(rows * (l2.index_select(0, ids) if isinstance(l2, Tensor) else l2))
        (beta1, beta2), step = group["betas"], float(state["step"])
        mean = state["mean"].index_select(0, ids).lerp_(gradient, 1 - beta1)
        square = state["square"].index_select(0, ids)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["mean"].index_copy_(0, ids, mean)
        state["square"].index_copy_(0, ids, square)
        scale = (1 - beta2**step) ** 0.5
        spread = square.sqrt_().div_(scale).add_(group["eps"])
        rows.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**step))
        parameter.index_copy_(0, ids, rows)


def coalesced(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct row numbers [U] of a sparse gradient and the sum of each one's gradients [U, w].

    `Tensor.coalesce` sorts, and is several times slower on the CPU.
    """
    ids, values = gradient._indices()[0], gradient._values()
    distinct, place = torch.unique(ids, return_inverse=True)
    summed = torch.zeros(len(distinct), values.shape[1]).index_add_(0, place, values)
    return distinct, summed


def optimizers(
    model: nn.Module, settings: TrainSettings, features: Features, rows: int
) -> list[torch.optim.Optimizer]:
    """Adam for dense parameters, lazy Adam for tables; fused tables update themselves.

    Args:
        features: with the times that each of their rows is looked up in the log.
        rows: of the log.
    """
    counts = {f.name: torch.from_numpy(f.vocabulary.counts) for f in features.ids}
    tables = table_parameters(model)
    apart = {id(p) for p, _ in tables} | _self_updating(model)
    dense = [p for p in model.parameters() if id(p) not in apart and p.requires_grad]
    found: list[torch.optim.Optimizer] = []
    if dense:
        found.append(torch.optim.Adam(dense, lr=settings.learning_rate, fused=True))
    if tables:
        groups = [
            {
                "params": [parameter],
                "l2": settings.embedding_l2 / chance(counts, blocks, rows, settings.batch_rows),
            }
            for parameter, blocks in tables
        ]
        found.append(LazyAdam(groups, lr=settings.table_learning_rate))
    return found


def chance(
    counts: Mapping[str, Tensor], blocks: Sequence[Sequence[str]], rows: int, batch_rows: int
) -> Tensor:
    """Chance of each table row to be in a batch, float32 [table rows, 1]; 1 where not known.

    An L2 on looked-up rows, divided by this chance, is in expectation an L2 on the whole table
    at every step, at the cost of the rows that are touched anyway.

    Args:
        blocks: features of each of the tables that lie one after another in the parameter.
    """
    known = [torch.stack([counts[name] for name in block]).sum(0) for block in blocks]
    if not known:
        return torch.ones(1, 1)
    share = torch.cat(known).double().clamp(min=1) / rows
    return (1 - (1 - share.clamp(max=1)).pow(batch_rows)).float().unsqueeze(1)


def set_learning_rate(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], factor: float
) -> None:
    """Set the learning rate of every part of the model to `factor` times what it began with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
    for module in model.modules():
        if isinstance(module, FusedAdagradTables):
            module.set_learning_rate(factor)


def table_parameters(model: nn.Module) -> list[tuple[Tensor, list[list[str]]]]:
    """Parameters whose rows are ids, with the features of the tables that they hold, if known.

    Plain tables are told to give sparse gradients.
    """
    features = {
        id(module.embedding_bags[config.name]): config.feature_names
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    }
    found: list[tuple[Tensor, list[list[str]]]] = []
    for module in model.modules():
        blocks: list[list[str]] = [features[id(module)]] if id(module) in features else []
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = True
            found.append((module.weight, blocks))
        elif isinstance(module, FlatTables):
            found.append((module.flat, [c.feature_names for c in module.embedding_bag_configs()]))
        elif isinstance(module, CompressedTable) and module.stored.master is not None:
            found.append((module.stored.master, blocks))
    return found


def _self_updating(model: nn.Module) -> set[int]:
    fused = (module for module in model.modules() if isinstance(module, FusedAdagradTables))
    return {id(parameter) for module in fused for parameter in module.parameters()}
