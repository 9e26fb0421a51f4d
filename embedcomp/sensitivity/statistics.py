"""What a log says about a model's layers: sums over its rows, so that shards add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embedcomp.kernels.threads import in_threads
from embedcomp.log.batches import Batch
from embedcomp.modules.table import bag_bounds, kept, pooled_weights
from embedcomp.sensitivity.layer import (
    Layer,
    LinearStatistics,
    TableSpec,
    TableStatistics,
)
from embedcomp.sensitivity.layers import Found, counted
from embedcomp.sensitivity.sketch import (
    MOST_EXACT,
    Moment,
    Sketched,
    directions,
)

SAMPLES = "samples"

Score = Callable[[nn.Module, Any], Tensor]  # a model and a batch's inputs to logits [B]


@dataclass
class LookedUp:
    """Sums by row of a table of so many rows, of the rows that were looked up alone: a piece of a
    long log looks up few.
    """

    rows: int
    _parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # ids and what is added [n]
    _gathered: int = 0

    def add(self, ids: Tensor, values: Tensor) -> None:
        """Add to rows, which may come several times: ids int64 [n], values float64 [n]."""
        self._parts.append((ids, values))
        self._gathered += len(ids)
        if self._gathered > self.rows:
            self.added_up()

    def added_up(self) -> tuple[Tensor, Tensor]:
        """Rows int64 [n], each once, and their sums float64 [n], made in the order of adding."""
        if self._gathered:
            ids, places = torch.cat([ids for ids, _ in self._parts]).unique(return_inverse=True)
            values = torch.cat([values for _, values in self._parts])
            sums = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, places, values)
            self._parts, self._gathered = [(ids, sums)], 0
        return self._parts[0]

    def __getstate__(self) -> dict[str, Any]:
        self.added_up()
        return self.__dict__


@dataclass
class Statistics:
    """Sums over a log in float64, by "layer|what".

    For a linear layer: `rows` (of its input), `x` [i], `xx` [i, i] and `spread`, of the squared
    distance between an input's smallest and largest number; of many inputs `squares` [i] and
    `sketch` [i, directions] (sketch.py) in the place of `xx`. For every layer: `gradient` [o, o],
    the sum of p (1 - p) dz/dy dz/dy^T at its output y (the Gauss-Newton matrix of the log loss, z
    the logit and p the probability; for a pooled table it is scaled so that independent errors of
    the rows in a bag add up), and `fisher`, the same for its weight, summed over a row: [rows] of a
    table, [outputs] of a linear layer. Where ids were counted, a table also has `counts` [rows].
    `samples` counts the log's rows.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    looked_up: dict[str, LookedUp] = field(default_factory=dict)  # sums [rows] that are not in it

    def __iadd__(self, other: Statistics) -> Statistics:
        self._settle()
        for name, value in other.sums.items():
            self.add(name, value)
        for name, found in other.looked_up.items():
            self._take_rows(name, found)
        return self

    def add(self, name: str, value: Tensor) -> None:
        if name in self.sums:
            self.sums[name] = self.sums[name] + value
        else:  # a copy, since rows are added in place and what Ray sends is read-only
            self.sums[name] = value.to(torch.float64, copy=True)

    def take(self, seen: _Seen) -> None:
        """Add what one batch does."""
        for name, value in seen.sums:
            self.add(name, value)
        for name, rows, ids, values in seen.by_row:
            self.looked_up.setdefault(name, LookedUp(rows)).add(ids, values.double())

    def _settle(self) -> None:
        """Have sums of all rows of every table, not of some alone."""
        while self.looked_up:
            self._take_rows(*self.looked_up.popitem())

    def _take_rows(self, name: str, found: LookedUp) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros(found.rows, dtype=torch.float64)
        self.sums[name].index_add_(0, *found.added_up())

    @property
    def samples(self) -> int:
        return int(self.sums.get(SAMPLES, torch.zeros(())).item())

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, as safetensors keeps them."""
        self._settle()
        return dict(self.sums)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Statistics:
        return cls(dict(tensors))

    def measured(self, found: Found) -> Found:
        """The layers with their statistics; those that no row of the log reached are refused."""
        if not self.samples:
            return found
        self._settle()
        layers, refused = {}, dict(found.refused)
        for name, layer in found.layers.items():
            if f"{name}|gradient" in self.sums:
                layers[name] = self._measured(name, layer)
            else:
                refused[name] = "is not called, or does not change the score, on any row of the log"
        return Found(layers, refused)

    def _measured(self, name: str, layer: Layer) -> Layer:
        gradient = self.sums[f"{name}|gradient"] / self.samples
        fisher = self._mean(f"{name}|fisher")
        if isinstance(layer.statistics, TableStatistics):
            counts = self.sums.get(f"{name}|counts", layer.statistics.counts)
            table = TableStatistics(counts, gradient, fisher)
            assert isinstance(layer.spec, TableSpec)
            return replace(layer, spec=counted(layer.spec, counts), statistics=table, _shared={})
        rows, spread = self.sums[f"{name}|rows"], self._mean(f"{name}|spread")
        linear = LinearStatistics(
            mean=self.sums[f"{name}|x"] / rows,
            second=self._second(name),
            gradient=gradient,
            fisher=fisher,
            spread=None if spread is None else float(spread * self.samples / rows),
        )
        return replace(layer, statistics=linear, _shared={})

    def _second(self, name: str) -> Moment:
        """E[x x^T] of a linear layer's inputs."""
        if f"{name}|xx" in self.sums:
            return self.sums[f"{name}|xx"] / self.sums[f"{name}|rows"]
        sums = (self.sums[f"{name}|{what}"] for what in ("rows", "x", "squares", "sketch"))
        return Sketched.of_sums(*sums)

    def _mean(self, name: str) -> Tensor | None:
        """A mean over the log's rows; None in statistics of an older version, without it."""
        return self.sums[name] / self.samples if name in self.sums else None


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
    twins: Sequence[nn.Module] = (),
) -> Statistics:
    """Run the model over batches and sum up what its layers see and what their outputs matter.

    Products of one batch are in float32, their sums in float64. The model is left as it was.

    Args:
        count_ids: count the rows that are looked up too: where no log has counted them.
        twins: more of the same model, for a thread each. Batches are summed up in their order, so
            the statistics do not depend on how many there are.
    """
    statistics = Statistics()
    with ExitStack() as stack:
        free: SimpleQueue[_Watched] = SimpleQueue()
        for one in (model, *twins):
            free.put(stack.enter_context(_watched(one, found, count_ids)))

        def seen(batch: Any) -> _Seen:
            watched = free.get()
            try:
                return watched.run(score, batch)
            finally:
                free.put(watched)

        for one_seen in in_threads(seen, inputs, 1 + len(twins)):
            statistics.take(one_seen)
    return statistics


@dataclass
class _Seen:
    """What one batch adds to the sums.

    by_row: names, numbers of rows, ids [n] and what is added to their rows [n].
    """

    sums: list[tuple[str, Tensor]] = field(default_factory=list)
    by_row: list[tuple[str, int, Tensor, Tensor]] = field(default_factory=list)


@dataclass
class _Watched:
    """A model with a hook on every layer.

    seen: of the batch that it runs on.
    """

    model: nn.Module
    seen: _Seen = field(default_factory=_Seen)

    def run(self, score: Score, batch: Any) -> _Seen:
        self.seen = found = _Seen()
        with torch.enable_grad():
            logits = score(self.model, batch).view(-1)
            p = torch.sigmoid(logits.detach())
            if logits.requires_grad:
                (logits * (p * (1 - p)).sqrt()).sum().backward()
        found.sums.append((SAMPLES, torch.tensor(len(logits))))
        return found


@contextmanager
def _watched(model: nn.Module, found: Found, count_ids: bool) -> Iterator[_Watched]:
    """In evaluation mode, without gradients of parameters, and with a hook on every layer."""
    was_training = {module: module.training for module in model.modules()}
    needed = {p: p.requires_grad for p in model.parameters()}
    hooks, watched = [], _Watched(model)
    for name, layer in found.layers.items():
        hook = _Watch(watched, name, layer, count_ids)
        hooks.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        model.eval().requires_grad_(False)
        yield watched
    finally:
        for handle in hooks:
            handle.remove()
        for parameter, flag in needed.items():
            parameter.requires_grad_(flag)
        for module, training in was_training.items():
            module.training = training


@dataclass(frozen=True)
class _Watch:
    """Forward hook of one layer: takes in its input, and its output's gradient once it is known."""

    watched: _Watched
    name: str
    layer: Layer
    count_ids: bool

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        add: Callable[[Tensor], None]
        if isinstance(self.layer.spec, TableSpec):
            scale, shares = _bags(self.layer.spec, *args, **kwargs)
            add = partial(self._add_table_gradient, scale, shares)
            if self.count_ids:
                self._count(shares.ids)
        else:
            x = (args[0] if args else kwargs["input"]).detach().flatten(0, -2)
            self._add_input(x)
            add = partial(self._add_linear_gradient, x.square().sum(1))
        if not output.requires_grad:  # the graph begins here; what follows may work in place
            output = output.detach().requires_grad_().clone()
        output.register_hook(add)
        return output

    def _add(self, what: str, value: Tensor) -> None:
        self.watched.seen.sums.append((f"{self.name}|{what}", value))

    def _add_by_row(self, what: str, ids: Tensor, values: Tensor) -> None:
        added = f"{self.name}|{what}", len(self.layer.weight), ids, values
        self.watched.seen.by_row.append(added)

    def _add_input(self, x: Tensor) -> None:
        self._add("rows", torch.tensor(len(x)))
        self._add("x", x.sum(0))
        if x.shape[1] > MOST_EXACT:
            self._add("squares", x.square().sum(0))
            self._add("sketch", x.T @ (x @ directions(x.shape[1])))
        else:
            self._add("xx", _moment(x))
        spread = x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)
        self._add("spread", spread.square().sum())

    def _count(self, ids: Tensor) -> None:
        assert isinstance(self.layer.spec, TableSpec)
        if self.layer.spec.padding_idx is not None:
            ids = ids[ids != self.layer.spec.padding_idx]
        self._add_by_row("counts", ids, torch.ones(len(ids)))

    def _add_table_gradient(self, scale: Tensor | None, shares: _Shares, g: Tensor) -> None:
        g = g.flatten(0, -2)
        self._add("gradient", _moment(g) if scale is None else (g * scale).T @ g)
        squares = g.square().sum(1)[shares.bags] * shares.squared
        self._add_by_row("fisher", shares.ids, squares)

    def _add_linear_gradient(self, squares: Tensor, g: Tensor) -> None:
        g = g.flatten(0, -2)
        self._add("gradient", _moment(g))
        self._add("fisher", squares @ g.square())


def _moment(x: Tensor) -> Tensor:
    """x^T x of x [n, d]; numpy sees that it is symmetric, and computes half of it."""
    if x.device.type != "cpu":
        return x.T @ x
    values = x.numpy()
    return torch.from_numpy(values.T @ values)


class _Shares(NamedTuple):
    """The ids that are looked up, which bag each is of, and its squared share in it; all [n]."""

    ids: Tensor
    bags: Tensor
    squared: Tensor


def _bags(
    spec: TableSpec,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> tuple[Tensor | None, _Shares]:
    """What to weigh each bag's gradient with, [B, 1], and the ids' shares.

    The weight is the sum of the rows' squared shares.
    """
    ids = input.reshape(-1)
    if spec.pooling == "none":
        return None, _Shares(ids, torch.arange(len(ids)), torch.ones(len(ids)))
    bounds = bag_bounds(input, offsets, spec.last_offset)
    weights = None if per_sample_weights is None else per_sample_weights.detach().reshape(-1)
    weights = kept(ids, weights, spec.padding_idx)
    bags = torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())
    squared = torch.ones(len(ids)) if weights is None else weights.square()
    if spec.pooling == "mean":
        lengths = (
            bounds.diff().float() if weights is None else pooled_weights(weights, bounds)[:, 0]
        )
        squared = squared / lengths.clamp_min(1).square()[bags]
    return pooled_weights(squared, bounds), _Shares(ids, bags, squared)
