"""Optimizers: of dense weights, and of tables by the rows that a batch looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from embedcomp.storage.training import Group, Moved, parts_that_train
from embedcomp.train.settings import TrainSettings

NO_MEAN = 2.0**-100  # its root is far below Adam's eps
FORGETS_EVERY = 128  # steps; 0.9 to their power takes no number from NO_MEAN to the denormal ones


class DenseAdam(torch.optim.Adam):
    """Adam that forgets means that are too small to move a weight.

    The mean gradient of a weight behind a unit that is never active falls at every step, and ends
    as a denormal number, which no rounding brings to zero and with which CPUs multiply many times
    slower. The steps between two rounds of forgetting are too few for that.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = super().step(closure)
        for state in self.state.values():
            if int(state["step"]) % FORGETS_EVERY == 0:
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name].masked_fill_(state[name].abs() < NO_MEAN, 0.0)
        return loss


class OfRows(torch.optim.Optimizer):
    """An optimizer of tables [rows, width] that reads and writes only the rows of a batch.

    What would have happened to a row in the steps since its last look-up is made up for when it is
    looked up again, so the L2 is that of whole tables.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], **defaults: Any):
        super().__init__(params, defaults)
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
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["last"] = torch.zeros(len(parameter), 1)  # step of each row's last look-up
            self._begin(parameter, state)
        state["step"] += 1
        if parameter not in self._seats:
            self._seats[parameter] = torch.empty(len(parameter), dtype=torch.int64)
        assert parameter.grad is not None
        ids, gradient = coalesced(parameter.grad, self._seats[parameter])  # [U], [U, width]
        step = float(state["step"])
        passed = step - state["last"].index_select(0, ids)  # [U, 1]
        state["last"].index_fill_(0, ids, step)
        rows = parameter.index_select(0, ids)
        self._move(rows, ids, gradient, passed, state, group)
        parameter.index_copy_(0, ids, rows)

    def _begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """Add what the optimizer keeps of a table."""
        raise NotImplementedError

    def _move(
        self,
        rows: Tensor,
        ids: Tensor,
        gradient: Tensor,
        passed: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
    ) -> None:
        """Move `rows` [U, width] in place; `passed` [U, 1] is in steps since their last look-up."""
        raise NotImplementedError


class LazyAdam(OfRows):
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
        super().__init__(params, lr=lr, l2=l2, betas=betas, eps=eps)

    def _begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        state["mean"] = torch.zeros_like(parameter)
        state["square"] = torch.zeros_like(parameter)

    def _move(
        self,
        rows: Tensor,
        ids: Tensor,
        gradient: Tensor,
        passed: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
    ) -> None:
        (beta1, beta2), step = group["betas"], float(state["step"])
        mean = state["mean"].index_select(0, ids).lerp_(gradient, 1 - beta1)
        square = state["square"].index_select(0, ids).mul_(beta2**passed)
        square.addcmul_(gradient, gradient, value=1 - beta2)
        state["mean"].index_copy_(0, ids, mean)
        state["square"].index_copy_(0, ids, square)
        spread = square.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        rows.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**step))
        if group["l2"]:
            pull = rows * group["l2"]  # is in the mean square too: no step is longer than lr
            rows.mul_((-group["lr"] * group["l2"] * passed / spread.hypot_(pull)).exp_())


class RowwiseAdagrad(OfRows):
    """Adagrad with one sum of squares a row, not a value: the choice for large tables.

    As fbgemm's EXACT_ROWWISE_ADAGRAD, whose kernel for CPUs leaves its L2 out. The steps that have
    passed since a row's last look-up add their L2 to its gradient.

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
        eps: float = 1e-8,
    ):
        super().__init__(params, lr=lr, l2=l2, eps=eps)

    def _begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        state["sum"] = torch.zeros(len(parameter), 1)

    def _move(
        self,
        rows: Tensor,
        ids: Tensor,
        gradient: Tensor,
        passed: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
    ) -> None:
        if group["l2"]:
            gradient = torch.addcmul(gradient, rows, passed, value=group["l2"])
        squares = state["sum"].index_select(0, ids).add_(gradient.square().mean(1, keepdim=True))
        state["sum"].index_copy_(0, ids, squares)
        rows.addcdiv_(gradient, squares.sqrt_().add_(group["eps"]), value=-group["lr"])


def coalesced(gradient: Tensor, seat: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct row numbers [U] of a gradient and the sum of each one's gradients [U, w].

    `Tensor.coalesce` sorts, and so does `torch.unique`; this writes and reads one number a row
    (by scatter_ and index_select in int64: plain indexing or int32 takes four times as long).

    Args:
        seat: int64 [rows] of scratch: what it holds before does not matter.
    """
    if not gradient.is_sparse:  # something beside look-ups reads the table, as a penalty does
        return torch.arange(len(gradient)), gradient
    ids, values = gradient._indices()[0], gradient._values()
    positions = torch.arange(len(ids))
    seat.scatter_(
        0, ids, positions
    )  # where a row comes again, one position stays and stands for it
    distinct = ids.masked_select(seat.index_select(0, ids) == positions)
    seat.scatter_(0, distinct, positions[: len(distinct)])
    summed = torch.zeros(len(distinct), values.shape[1])
    return distinct, summed.index_add_(0, seat.index_select(0, ids), values)


OF_TABLES: dict[str, type[LazyAdam] | type[RowwiseAdagrad]] = {
    "adam": LazyAdam,
    "rowwise_adagrad": RowwiseAdagrad,
}


def optimizers(model: nn.Module, settings: TrainSettings, rows: int) -> list[torch.optim.Optimizer]:
    """What moves the parameters: one optimizer a kind of Group that there is.

    Args:
        rows: of the log.
    """
    factor = settings.rate_factor
    assert factor is not None, "it is known where the model begins"
    dense: dict[str, Any] = {"lr": factor * settings.learning_rate, "l2": 0.0}
    table = {"lr": factor * settings.table_learning_rate, "l2": settings.embedding_l2 or 0.0}
    usual = {"rows": table, "dense": dense, "sgd": dense}
    kinds: dict[str, list[dict[str, Any]]] = {"dense": [], "rows": [], "sgd": []}
    for group in groups(model):
        rate, l2 = group.rate * usual[group.kind]["lr"], group.l2
        weight = (usual[group.kind]["l2"] if l2 is None else l2) / rows
        decay = "l2" if group.kind == "rows" else "weight_decay"
        kinds[group.kind].append({"params": [*group.parameters], "lr": rate, decay: weight})
    made: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
        "dense": partial(DenseAdam, fused=True),
        "rows": OF_TABLES[settings.table_optimizer],
        "sgd": torch.optim.SGD,
    }
    return [made[kind](found) for kind, found in kinds.items() if found]


def groups(model: nn.Module) -> list[Group]:
    """The parameters that train, each once: as modules ask for it, all others as dense ones."""
    asked = [*_plain_tables(model)]
    for part in parts_that_train(model):
        asked += part.groups()
    found, named = [], set[Tensor]()
    for group in asked:
        left = tuple(p for p in dict.fromkeys(group.parameters) if p not in named)
        if left:
            found.append(replace(group, parameters=left))
        named.update(left)
    others = tuple(p for p in model.parameters() if p not in named and p.requires_grad)
    return [Group(others, "dense"), *found] if others else found


def _plain_tables(model: nn.Module) -> Iterator[Group]:
    """Tables of torch, which are set to give sparse gradients."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = True
            yield Group((module.weight,), "rows")


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to `factor` times what it began with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])


@torch.no_grad()
def begin_anew(optimizers: Iterable[torch.optim.Optimizer], moved: Iterable[Moved]) -> None:
    """Let optimizers forget what they know of numbers that were set to something else."""
    for one in moved:
        for optimizer in optimizers:
            state = optimizer.state.get(one.parameter, {})
            for name, kept in state.items():
                if name == "last":  # there was no look-up that the present step has to make up for
                    _fill(kept, one, float(state["step"]))
                elif kept.ndim:
                    _fill(kept, one, 0.0)


def _fill(kept: Tensor, moved: Moved, value: float) -> None:
    if moved.numbers is not None:
        if kept.shape == moved.numbers.shape:
            kept.masked_fill_(moved.numbers, value)
    elif moved.rows is None:
        kept.fill_(value)
    else:
        kept.index_fill_(0, moved.rows, value)
