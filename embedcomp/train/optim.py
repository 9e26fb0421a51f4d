"""Adam for embedding tables: only the rows that a batch looked up are read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from embedcomp.served.table import CompressedTable
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import FlatTables, FusedAdagradTables


class LazyAdam(torch.optim.Optimizer):
    """Adam with L2 over whole tables, at the cost of the rows [rows, width] that are looked up.

    Adam on all rows moves rare ones further a look-up, since their mean squared gradient counts the
    steps without one, and shrinks every row at every step. Both are made up for when a row is
    looked up: its squared gradient decays by the steps that have passed, and so does the row by its
    L2. Momentum decays with look-ups only, so that none of a gradient is lost (as in
    torch.optim.SparseAdam).

    Args:
        params: parameters with sparse gradients, or groups of them.
        lr: learning rate.
        l2: times the row, would be added to its gradient at every step.
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
        self._seats: dict[Tensor, Tensor] = {}  # scratch, which no checkpoint needs

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._seats = {}

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
            state["last"] = torch.zeros(len(parameter), 1)  # step of each row's last look-up
        state["step"] += 1
        (beta1, beta2), step = group["betas"], float(state["step"])
        if parameter not in self._seats:
            self._seats[parameter] = torch.empty(len(parameter), dtype=torch.int64)
        ids, gradient = coalesced(sparse, self._seats[parameter])  # [U], [U, width]
        passed = step - state["last"].index_select(0, ids)  # [U, 1]
        state["last"].index_fill_(0, ids, step)
        mean = state["mean"].index_select(0, ids).lerp_(gradient, 1 - beta1)
        square = state["square"].index_select(0, ids).mul_(beta2**passed)
        square.addcmul_(gradient, gradient, value=1 - beta2)
        state["mean"].index_copy_(0, ids, mean)
        state["square"].index_copy_(0, ids, square)
        spread = square.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        rows = parameter.index_select(0, ids)
        rows.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**step))
        if group["l2"]:
            pull = rows * group["l2"]  # is in the mean square too: no step is longer than lr
            rows.mul_((-group["lr"] * group["l2"] * passed / spread.hypot_(pull)).exp_())
        parameter.index_copy_(0, ids, rows)


def coalesced(gradient: Tensor, seat: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct row numbers [U] of a sparse gradient and the sum of each one's gradients [U, w].

    `Tensor.coalesce` sorts, and so does `torch.unique`; this writes and reads one number a row
    (by scatter_ and index_select in int64: plain indexing or int32 takes four times as long).

    Args:
        seat: int64 [rows] of scratch: what it holds before does not matter.
    """
    ids, values = gradient._indices()[0], gradient._values()
    positions = torch.arange(len(ids))
    seat.scatter_(
        0, ids, positions
    )  # where a row comes again, one position stays and stands for it
    distinct = ids.masked_select(seat.index_select(0, ids) == positions)
    seat.scatter_(0, distinct, positions[: len(distinct)])
    summed = torch.zeros(len(distinct), values.shape[1])
    return distinct, summed.index_add_(0, seat.index_select(0, ids), values)


def optimizers(model: nn.Module, settings: TrainSettings, rows: int) -> list[torch.optim.Optimizer]:
    """Adam for dense parameters, lazy Adam for tables; fused tables update themselves.

    Args:
        rows: of the log.
    """
    tables = table_parameters(model)
    apart = {id(parameter) for parameter in tables} | _self_updating(model)
    dense = [p for p in model.parameters() if id(p) not in apart and p.requires_grad]
    found: list[torch.optim.Optimizer] = []
    if dense:
        found.append(torch.optim.Adam(dense, lr=settings.learning_rate, fused=True))
    if tables:
        found.append(LazyAdam(tables, settings.table_learning_rate, settings.embedding_l2 / rows))
    return found


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


def table_parameters(model: nn.Module) -> list[Tensor]:
    """Parameters whose rows are ids; plain tables are told to give sparse gradients."""
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = True
            found.append(module.weight)
        elif isinstance(module, FlatTables):
            found.append(module.flat)
        elif isinstance(module, CompressedTable) and module.stored.master is not None:
            found.append(module.stored.master)
    return found


def _self_updating(model: nn.Module) -> set[int]:
    fused = (module for module in model.modules() if isinstance(module, FusedAdagradTables))
    return {id(parameter) for module in fused for parameter in module.parameters()}
