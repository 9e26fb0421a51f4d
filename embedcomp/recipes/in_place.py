"""Compressed layers in a model that stays its owner's: plan, swap, restore, commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from embedcomp.artifact import artifact
from embedcomp.artifact.artifact import Artifact, StandsAlone
from embedcomp.engine import calibrate
from embedcomp.engine.arrays import as_array
from embedcomp.engine.cost import CostModel
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.prepare import matched
from embedcomp.engine.standalone import PRECISIONS, Standalone
from embedcomp.errors import BadArtifact, BadModel, BadSettings
from embedcomp.methods import every as every_method
from embedcomp.methods import get as get_method
from embedcomp.modules.layout import module_of, share
from embedcomp.modules.sizes import model_bytes, module_bytes
from embedcomp.planning import planner
from embedcomp.planning.bound import smallest_within
from embedcomp.planning.goal import Goal, LatencyBudget
from embedcomp.planning.latency import Timing
from embedcomp.planning.lowered import Lowered
from embedcomp.planning.plan import Plan
from embedcomp.planning.planner import MethodLike
from embedcomp.recipes import in_time
from embedcomp.recipes.in_time import Measured
from embedcomp.recipes.progress import asked
from embedcomp.scorer.stand_alone import stand_alone
from embedcomp.sensitivity.auc import Noisy
from embedcomp.sensitivity.layer import Layer
from embedcomp.sensitivity.layers import Found, find
from embedcomp.sensitivity.statistics import Score, Statistics, measure
from embedcomp.support.progress import Counter, Doing, Watch
from embedcomp.swapping import swap
from embedcomp.swapping.heldout import HeldOut

Written = Mapping[str, MethodLike]  # by pattern of layers' names


@dataclass(frozen=True)
class _Original:
    """What it takes to put a model back as it was."""

    plan: Plan  # that was carried out
    modules: dict[str, nn.Module]  # taken out, by name
    rest: dict[str, Tensor]  # copies of all other parameters and buffers, which may be trained on


log = logging.getLogger(__name__)
_originals: WeakKeyDictionary[nn.Module, _Original] = WeakKeyDictionary()


def plan(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    budget: str | int | None = None,
    *,
    score: Score,
    methods: Collection[str] | None = None,
    max_auc_loss: float | None = None,
    latency_budget: str = "",
    cost_model: str = "",
    solver: str = "exact",
    progress: bool | Watch = False,
) -> Plan:
    """The choices with the smallest predicted loss for which the model keeps to its budgets.

    Args:
        model: left as it is.
        batches: (inputs, labels), kept in memory while planning; a few ten thousand rows are
            enough. Where there is a budget the labels are only for the plan's `outcome`: the loss
            is predicted from the model's own probabilities. The last bias is fitted on these rows
            so that the mean score stays.
        budget: bytes of the whole model, or "5x", "20%", "4MiB".
        score: (model, inputs) -> logits [B].
        methods: that may be used, or "all"; None: those of docs/methods.md that pay.
        max_auc_loss: instead of a budget: the fewest bytes for which the AUC measured on the
            batches (0 or 1 as labels; best of rows that the model was not trained on) is lower by
            at most this, its error taken in.
        latency_budget: beside a budget or instead of one: the time of a call on one thread and its
            rows, "200us@64", or "2x@64" for half the original's; bags hold as many ids as those
            of the batches do on average.
        cost_model: file of `embedcomp calibrate` from the machine that serves; empty: this one's,
            on which plans are timed.
        solver: exact, highs, greedy, or the baselines welore and farms.
        progress: True shows how far planning is on standard error; a function is called with each
            `embedcomp.support.progress.State`.

    Raises:
        BadModel: no batch, layers are compressed already, or there is a latency budget and the
            engine does not run the model.
        BadLog, BadSettings, LimitsTooSmall: a budget or the loss cannot be read or met, both or
            neither are given, or there is no such solver.
        CannotExport: there is a latency budget, and the model cannot be exported.
    """
    _refuse_swapped(model)
    said = "" if budget is None else str(budget)
    goal = Goal.parse(said, latency_budget, max_auc_loss, methods=methods or (), solver=solver)
    with asked(progress) as watch:
        return _plan(model, batches, goal, score, solver, cost_model, watch)


def _plan(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    goal: Goal,
    score: Score,
    solver: str,
    cost_model: str,
    watch: Watch,
) -> Plan:
    watch(Doing("reading batches"))
    found, pairs = find(model, {}), list(batches)
    held = HeldOut.of(model, pairs, score, "given", watch)
    counter = Counter(watch, "measuring", len(pairs), "batches")
    measured = measure(model, counter.over(held.inputs), found, score, count_ids=True)
    make_plan = partial(planner.plan, model, found, measured, solver=solver, watch=watch)
    carried_out = partial(_carried_out, model, held, measured, watch)
    if goal.auc_loss is None:
        limit = None if goal.bytes is None else goal.bytes.of(module_bytes(model))
        within = partial(make_plan, limit, goal.methods)
        if goal.latency is None:
            return carried_out(within())
        timed = _Timed.of(model, found, score, held.inputs, goal.latency, cost_model, watch)
        return carried_out(timed.best(within))
    noisy = Noisy.of(held.quality)
    held.refuse_one_kind()
    smallest = smallest_within(
        goal.auc_loss,
        noisy.log_loss(goal.auc_loss),
        lambda loss: make_plan(None, goal.methods, most_loss=loss),
        carried_out,
        lambda: make_plan(None, ("keep",), most_loss=0.0),
    )
    auc_loss = noisy.auc_loss(smallest.loss)
    return replace(smallest, max_auc_loss=goal.auc_loss, auc_loss=auc_loss)


@dataclass(frozen=True)
class _Timed:
    """What it takes to predict and to measure how long calls of a model take."""

    model: nn.Module
    score: Score
    example: Any
    original: StandsAlone
    timing: Timing
    watch: Watch

    @classmethod
    def of(
        cls,
        model: nn.Module,
        found: Found,
        score: Score,
        inputs: Sequence[Any],
        budget: LatencyBudget,
        cost_model: str,
        watch: Watch,
    ) -> _Timed:
        """Raises BadModel, BadSettings, CannotExport and NotBuilt, as for `plan`."""
        watch(Doing("finding out what calls cost"))
        original = stand_alone(model, score, inputs[0])
        alone = original.standalone
        if alone.graph is None:
            raise BadModel(
                f"the model is not scored by the compiled engine ({alone.reason}), whose work is "
                "what a latency is predicted from; give a budget instead"
            )
        held = {name: as_array(tensor) for name, tensor in original.held.items()}
        program = lower(alone.graph, alone.tensors(held))
        timing = Timing(
            Lowered(alone.graph, program, layers=found.layers),
            CostModel.load(Path(cost_model)) if cost_model else calibrate.of_this_machine(),
            budget,
            ids=_ids(alone, inputs),
        )
        return cls(model, score, inputs[0], original, timing, watch)

    def best(self, within: Callable[..., Plan]) -> Plan:
        """The best plan; measured, where this is the machine that serves."""
        make = partial(within, timing=self.timing)
        if self.timing.model.machine != calibrate.cpu():
            return make()
        return in_time.best(in_time.tried(make, self._measured, self.timing))

    def _measured(self, plan: Plan) -> Measured:
        rows, alone = self.timing.rows, self.original.standalone
        before = in_time.calls(alone, self.original.held, None, rows)
        swap_(self.model, plan, progress=self.watch)
        self.watch(Doing("timing the plan"))
        try:
            compressed = stand_alone(self.model, self.score, self.example)
            return in_time.measure(before, compressed, None, rows)
        finally:
            restore_(self.model)


def _ids(alone: Standalone, inputs: Sequence[Any]) -> dict[str, float]:
    """Mean number of ids of the bags of each jagged feature."""
    found: dict[str, list[Tensor]] = {}
    for one in inputs:
        for leaf, value in zip(alone.leaves, matched(one, alone.leaves), strict=True):
            if leaf.kind == "jagged":
                lengths = value.lengths().view(len(value.keys()), -1).float()
                for key, own in zip(value.keys(), lengths, strict=True):
                    found.setdefault(key, []).append(own)
    return {key: float(torch.cat(own).mean()) for key, own in found.items()}


def _carried_out(
    model: nn.Module, held: HeldOut, measured: Statistics, watch: Watch, planned: Plan
) -> Plan:
    """The plan with its statistics, and with what it does to the model, which is left as it was."""
    with_statistics = replace(planned, measured=measured)
    swap_(model, with_statistics, progress=watch)
    watch(Doing("scoring the batches"))
    try:
        outcome, _ = held.keep_mean_(model)
    finally:
        restore_(model)
    return replace(with_statistics, outcome=outcome)


def swap_(
    model: nn.Module,
    plan: Plan | Written | MethodLike,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    *,
    progress: bool | Watch = False,
) -> Plan:
    """Put compressed layers where the plan says, in place; `restore_` takes them out again.

    The model is called as before and its outputs have the same names, order and widths. Layers
    that the plan keeps are not touched. Until `commit_`, the original layers and a copy of all
    other parameters and buffers stay in memory.

    Args:
        plan: of `embedcomp.plan`; or a method's name or its Settings, such as
            `embedcomp.methods.low_rank.Settings(rank=8)`, for all layers that it takes; or a
            mapping from patterns of layers' names (as in fnmatch) to a name, to Settings, or to
            {"method": name, setting: value, ...}. Without statistics (a plan that was written
            down, or loaded), all rows and inputs of a layer matter alike.
        filter_fn: (module, name) -> whether a layer is swapped, where a method is given for all.
        progress: as for `embedcomp.plan`.

    Returns:
        The plan that was carried out.

    Raises:
        BadModel: layers are compressed already, or the plan is another model's.
        BadSettings: a pattern fits no layer, or there is no such method or setting.
        CannotStore: a layer's values do not fit its storage; the model is as it was.
    """
    _refuse_swapped(model)
    found = find(model, {})
    full_plan = plan if isinstance(plan, Plan) else _written(model, found, plan, filter_fn)
    if full_plan.single_valued:
        raise BadModel(
            "the plan folds decoders into the layers that read them, which cannot be undone in "
            "place; make one for this model with embedcomp.plan"
        )
    missing = [p.layer for p in full_plan.layers if p.layer not in found.layers]
    if missing:
        raise BadModel(f"the plan has a layer {missing[0]!r} that cannot be swapped in this model")
    planned = replace(full_plan, layers=tuple(p for p in full_plan.layers if p.method != "keep"))
    modules = {p.layer: model.get_submodule(p.layer) for p in planned.layers}
    rest = {n: t.clone() for n, t in _rest(model, modules).items()}
    _originals[model] = _Original(full_plan, modules, rest)
    layers = (planned.measured or Statistics()).measured(found).layers
    try:
        with asked(progress) as watch:
            swap.apply_(model, planned, layers, watch)
    except BaseException:
        restore_(model)
        raise
    return full_plan


def _written(
    model: nn.Module,
    found: Found,
    wanted: Written | MethodLike,
    filter_fn: Callable[[nn.Module, str], bool] | None,
) -> Plan:
    """The plan that a user wrote by hand."""
    if isinstance(wanted, Mapping):
        if filter_fn is not None:
            raise BadSettings("a filter_fn is for one method; a mapping names its layers already")
        return planner.by_name(model, found, wanted)
    chosen = {
        name: wanted
        for name, layer in found.layers.items()
        if planner.able(layer, wanted)
        and (filter_fn is None or filter_fn(model.get_submodule(name), name))
    }
    if not chosen:
        raise BadSettings(
            f"{wanted!r} is for no layer: none that the method takes passes the filter; "
            "`embedcomp.explain` lists what can be done with each"
        )
    return planner.by_name(model, found, chosen)


def restore_(model: nn.Module) -> None:
    """Put the model back as it was when `swap_` took it, bit for bit.

    The very modules that were taken out come back; what was trained of the others is undone.

    Raises:
        BadModel: nothing was swapped, or it was committed.
    """
    original = _original(model)
    for name, module in original.modules.items():
        model.set_submodule(name, module.train(model.training))
    for name, tensor in _rest(model, original.modules).items():
        if name in original.rest:  # some collections make buffers when they are first trained
            tensor.copy_(original.rest[name])
    del _originals[model]


def commit_(model: nn.Module) -> None:
    """Let the original layers go, and with them their memory.

    Raises:
        BadModel: nothing was swapped, or it was committed.
    """
    _original(model)
    del _originals[model]


def thaw_(model: nn.Module) -> None:
    """Make the compressed layers trainable; what they give is still rounded as it is stored.

    Tables get sparse gradients: use torch.optim.SparseAdam or another optimizer that takes them.
    """
    swap.thaw(model)


def freeze_(model: nn.Module) -> None:
    """Store what was trained; the model's outputs do not change by a bit.

    Raises:
        CannotStore: training went beyond what a storage holds.
    """
    swap.freeze(model)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    score: Score,
    example: Any,
    user: Collection[str] = (),
    precision: str = "float32",
) -> Artifact:
    """Write an artifact that scores without the model's code, as a new version under `path`.

    Args:
        score: (model, inputs) -> logits [B].
        example: inputs of at least one row, in tuples, lists, mappings or dataclasses: tensors with
            the batch first, and KeyedJaggedTensors. The scorer takes the same structure.
        user: features that are the same for all candidates of a request.
        precision: that a scorer computes products in, "float32", "bfloat16" or "int8".

    Raises:
        CannotExport: torch.export cannot follow the model (the message has the line), or what it
            made gives other scores than the model.
    """
    if precision not in PRECISIONS:
        raise BadSettings(f"precision is {precision!r}, but must be {' or '.join(PRECISIONS)}")
    alone = stand_alone(model, score, example, user=sorted(user), precision=precision)
    if alone.standalone.graph is None and precision != "float32":
        log.warning(
            "%s is scored by torch, since %s; products are float32 and not %s, as it was saved",
            *(path, alone.standalone.reason, precision),
        )
    swapped = _originals.get(model)
    plan = None if swapped is None else swapped.plan
    return artifact.save(path, model, alone=alone, bytes=model_bytes(model), plan=plan)


def load_(model: nn.Module, path: str | Path) -> None:
    """Fill a fresh model of the same code from an artifact; compressed layers take their places.

    Args:
        path: NAME (its newest version) or NAME/VERSION, written by `save`.

    Raises:
        BadArtifact: there is none, or it is another model's; the model is as it was.
    """
    opened = Artifact.open(path)
    alone = opened.standalone
    if alone is None:
        raise BadArtifact(f"{opened.folder} does not say which of its layers are compressed")
    replaced = {name: _module(model, name) for name in alone.layers}
    unknown = [name for name, module in replaced.items() if module is None]
    if unknown:
        raise BadArtifact(f"{opened.folder} is not of this model, which has no {unknown[0]}")
    held = opened.tensors()
    try:
        for name, layout in alone.layers.items():
            model.set_submodule(name, module_of(layout).train(model.training))
        share(model, alone.layers)
        buffers = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
        state = {name: tensor for name, tensor in held.items() if name not in buffers}
        _refuse_others(model, state, opened.folder)
    except BadArtifact:
        for name, module in replaced.items():
            assert module is not None
            model.set_submodule(name, module)
        raise
    model.load_state_dict(state)


def _refuse_others(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Before anything is copied: load_state_dict has copied some when it finds what does not fit.

    Raises:
        BadArtifact: the tensors are not the model's.
    """
    ours = model.state_dict()
    for name in sorted(ours.keys() ^ state.keys()):
        holder = "the model" if name in ours else "the artifact"
        raise BadArtifact(f"{folder} is not of this model: {name} is in {holder} alone")
    for name, tensor in ours.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            raise BadArtifact(f"{folder} is not of this model: {name} is {shapes}")


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One layer and what can be done with it."""

    layer: str
    kind: str  # of the module
    shape: tuple[int, ...]  # of its weight; (): it has none of its own
    bytes: int
    methods: tuple[str, ...]  # that take it
    reason: str  # why none does; "" where some do


@dataclass(frozen=True)
class Explanation:
    """Every layer of a model that owns parameters; prints as a table."""

    layers: tuple[Explained, ...]

    def __iter__(self) -> Iterator[Explained]:
        return iter(self.layers)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("layer", "kind", "shape", "bytes", "what can be done")
        for layer in self.layers:
            shape = " x ".join(str(n) for n in layer.shape)
            done = ", ".join(layer.methods) or layer.reason
            table.add_row(layer.layer, layer.kind, shape, f"{layer.bytes:,}", done)
        yield table

    def __str__(self) -> str:
        console = Console(width=140, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def explain(model: nn.Module) -> Explanation:
    """What can be done with each layer of a model, and why not with the others."""
    found = find(model, {})
    explained = []
    for name, module in model.named_modules():
        if name not in found.layers and name not in found.refused:
            continue
        weight, layer = module._parameters.get("weight"), found.layers.get(name)
        explained.append(
            Explained(
                layer=name,
                kind=type(module).__name__,
                shape=() if weight is None else tuple(weight.shape),
                bytes=module_bytes(module),
                methods=() if layer is None else _able(layer),
                reason=found.refused.get(name, ""),
            )
        )
    return Explanation(tuple(explained))


def _able(layer: Layer) -> tuple[str, ...]:
    """Methods that take the layer."""
    return tuple(n for n in every_method() if get_method(n).candidates(layer.spec))


def _rest(model: nn.Module, modules: Collection[str]) -> dict[str, Tensor]:
    """Parameters and buffers by name, without those of some modules."""
    owned = (*model.named_parameters(), *model.named_buffers())
    inside = tuple(f"{name}." for name in modules)
    return {name: tensor.detach() for name, tensor in owned if not name.startswith(inside)}


def _original(model: nn.Module) -> _Original:
    if model not in _originals:
        raise BadModel("this model has no layers to restore: none was swapped, or it is committed")
    return _originals[model]


def _refuse_swapped(model: nn.Module) -> None:
    if model in _originals:
        raise BadModel("this model has swapped layers; restore_ or commit_ them first")
