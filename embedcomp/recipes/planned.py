"""Plan what is done with every layer of a model, within bytes, a loss of AUC or a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from embedcomp.artifact.artifact import Artifact
from embedcomp.engine import calibrate
from embedcomp.engine.arrays import as_array
from embedcomp.engine.cost import CostModel
from embedcomp.engine.lowering.lower import lower
from embedcomp.engine.prepare import IDS_IN_A_BAG
from embedcomp.engine.standalone import Standalone
from embedcomp.errors import BadModel, BudgetTooSmall, LimitsTooSmall
from embedcomp.graph.graph import Graph
from embedcomp.kernels import native
from embedcomp.kernels.threads import one_thread
from embedcomp.modules.embedded import readers
from embedcomp.modules.sizes import module_bytes
from embedcomp.planning import planner
from embedcomp.planning.bound import smallest_within
from embedcomp.planning.goal import ByteBudget, LatencyBudget
from embedcomp.planning.latency import Timing
from embedcomp.planning.lowered import Lowered
from embedcomp.planning.plan import Plan
from embedcomp.planning.search import Known
from embedcomp.recipes import families, in_time
from embedcomp.recipes.in_time import Measured
from embedcomp.recipes.measuring import layers_of
from embedcomp.recipes.save import saved
from embedcomp.recipes.settings import CompressSettings
from embedcomp.scorer.stand_alone import stand_alone_from_log
from embedcomp.sensitivity.auc import Noisy
from embedcomp.sensitivity.layers import Found
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.progress import Doing, Watch, quiet
from embedcomp.swapping import swap
from embedcomp.swapping.cutting import cuts
from embedcomp.swapping.heldout import HeldOut
from embedcomp.train.tables import fast_tables

WRITTEN = 3  # artifacts, to find out how large one is beside its tensors
PROOF = 1 << 10  # bytes that tuning and the final proof may add to one


class Planning:
    """Plans of one model, for any budget and methods: what one finds out serves the next.

    Args:
        held: rows that a bound on the AUC has to hold on; under a budget they add the predicted
            loss of AUC to the plan.
    """

    def __init__(
        self,
        original: Artifact,
        measured: Statistics,
        held: HeldOut | None = None,
        watch: Watch = quiet,
    ):
        self._original, self.model = original, original.model()
        self.found = measured.measured(layers_of(original, self.model))
        self._single = {f.name for f in original.features.single}
        self._held, self._watch = held, watch
        self._known: dict[bool, Known] = {}  # without tuning, and with

    @cached_property
    def lowered(self) -> Lowered | None:
        """What the engine would make of choices; None: torch scores the model."""
        alone = self._original.standalone
        if alone is None or alone.graph is None or native.library() is None:
            return None
        return _lowered(self._original, alone.graph, alone, self.model, self.found)

    def plan(self, settings: CompressSettings) -> Plan:
        """The best choices within the budgets or the loss of AUC, by predictions.

        Where the form will be trained, plans beside it are those that may turn out better then.

        For a bound on the AUC plans are carried out and measured until one holds, and so they are
        for a latency of this machine (in_time.py). Otherwise nothing is compressed yet.

        Raises:
            BadLog: the held-out rows have no AUC that could be lost.
            BadModel: there is a latency budget, but the engine does not run the model.
            BadSettings: max_auc_loss is none that noise on the scores can bring about, or the cost
                model cannot be read.
            LimitsTooSmall: no choices keep to them.
        """
        bound = settings.goal.auc_loss
        if bound is None:
            best = in_time.best(self.tried(settings))
            others = families.others(settings, best, self._kept_to)
            return replace(best, name=families.MIX, others=others) if others else best
        return self._smallest_within(settings, bound)

    def _kept_to(self, settings: CompressSettings, to_rest: Collection[str]) -> Plan | None:
        """The best plan that keeps to the budgets; None: there is none."""
        try:
            plan = in_time.best(self.tried(settings, to_rest))
        except LimitsTooSmall:
            return None
        return plan if plan.in_time else None

    def _smallest_within(self, settings: CompressSettings, bound: float) -> Plan:
        """The smallest plan whose AUC is measured to be lower by at most a bound."""
        goal = settings.goal
        assert self._held is not None, "a bound on the AUC is held against held-out rows"
        first = Noisy.of(self._held.quality).log_loss(bound)
        self._held.refuse_one_kind()
        found = smallest_within(
            bound,
            first,
            partial(self._within, settings, goal.methods, None),
            self._carried_out,
            partial(self._within, settings, ("keep",), None, first),
        )
        return replace(found, max_auc_loss=bound)

    def tried(self, settings: CompressSettings, to_rest: Collection[str] = ()) -> list[Plan]:
        """The plans without a bound on the AUC that are made on the way to the best one.

        Args:
            to_rest: layers that are left to the rest of the methods.
        """
        goal = settings.goal
        budget = None if goal.bytes is None else self._bytes(settings, goal.bytes)
        if goal.latency is None:
            return [self._within(settings, goal.methods, budget, None, to_rest=to_rest)]
        self._watch(Doing("finding out what calls cost"))
        times = timing(self._original, self.model, self.found, goal.latency, settings.cost_model)
        make = partial(self._within, settings, goal.methods, budget, None, times, to_rest)
        if times.model.machine != calibrate.cpu():  # it will be served where it cannot be timed
            return [make()]
        return in_time.tried(make, partial(self._time, times.rows), times)

    def _bytes(self, settings: CompressSettings, budget: ByteBudget) -> int:
        """Bytes that the tensors may take.

        Where the budget is for the disk, what comes beside them is found by writing the artifact.
        """
        if settings.budget_of == "served":
            return budget.of(module_bytes(self.model))
        most = budget.of(self._original.disk_bytes["disk"])
        beside = self._beside(self._within(settings, ("keep",), None, 0.0))
        for _ in range(WRITTEN):
            try:
                planned = self._within(settings, settings.goal.methods, most - beside, None)
            except BudgetTooSmall:
                return self._smallest(settings, most)
            found = self._beside(planned)
            if planned.bytes_after + found <= most:
                return most - beside
            beside = found
        raise LimitsTooSmall(
            f"no plan was found whose files take at most {most:,} bytes: the last one has "
            f"{planned.bytes_after:,} of tensors and {found:,} beside them; give a budget of "
            "another size, or of what is served"
        )

    def _smallest(self, settings: CompressSettings, most: int) -> int:
        """Bytes of the smallest plan's tensors, where all its files keep to the budget."""
        planned = self._within(settings, settings.goal.methods, None, math.inf)
        beside = self._beside(planned)
        if planned.bytes_after + beside <= most:
            return planned.bytes_after
        raise LimitsTooSmall(
            f"the budget of {most:,} bytes on disk cannot be met: the smallest plan has "
            f"{planned.bytes_after:,} of tensors and {beside:,} of vocabularies, program and "
            f"manifest beside them; give at least {planned.bytes_after + beside:,} or allow more "
            "methods"
        )

    def _beside(self, plan: Plan) -> int:
        """Bytes that an artifact has beside its tensors, by writing one without its proof."""
        original = self._original
        compressed = swap.apply(self.model, plan, self.found, Statistics(), self._watch)
        self._watch(Doing("writing an artifact to see its size"))
        with TemporaryDirectory() as folder:
            written = saved(
                Path(folder),
                compressed,
                original.features,
                original.source,
                original.origin.training,
                plan,
                original.proof,
                cuts(self.model, compressed, plan, self.found.layers),
            )
            return written.disk_bytes["disk"] + PROOF - plan.bytes_after

    def _time(self, rows: int, plan: Plan) -> Measured:
        """Carry a plan out and time it against the original."""
        original = self._original
        assert original.standalone is not None, "its time was predicted"
        compressed = swap.apply(self.model, plan, self.found, Statistics(), self._watch)
        self._watch(Doing("timing the plan"))
        before = in_time.calls(original.standalone, original.tensors(), original.features, rows)
        alone = stand_alone_from_log(compressed, original.features)
        return in_time.measure(before, alone, original.features, rows)

    def _within(
        self,
        settings: CompressSettings,
        names: Sequence[str],
        budget: int | None,
        most_loss: float | None,
        timing: Timing | None = None,
        to_rest: Collection[str] = (),
    ) -> Plan:
        # An activation between factors is fitted to what a layer puts out, and of drawn numbers
        # the few that it leaves may never be above zero.
        tuned = settings.trains and not settings.from_log
        planned = planner.plan(
            self.model,
            self.found,
            Statistics(),  # the layers have theirs
            budget,
            names,
            self._single,
            most_loss=most_loss,
            solver=settings.solver,
            rest=settings.rest,
            to_rest=to_rest,
            known=self._known.setdefault(tuned, {}),
            timing=timing,
            lowered=self.lowered,
            tuned=tuned,
            watch=self._watch,
        )
        noisy = self._noisy
        return planned if noisy is None else replace(planned, auc_loss=noisy.auc_loss(planned.loss))

    @cached_property
    def _noisy(self) -> Noisy | None:
        """How noise lowers the AUC of the original's held-out scores.

        None where there are no held-out rows, or rows of one label only.
        """
        held = self._held
        return None if held is None or math.isnan(held.quality.auc) else Noisy.of(held.quality)

    def _carried_out(self, plan: Plan) -> Plan:
        """The plan with what it does to the held-out rows."""
        assert self._held is not None
        compressed = swap.apply(self.model, plan, self.found, Statistics(), self._watch)
        self._watch(Doing("scoring the held-out rows"))
        with one_thread(), fast_tables(compressed):
            return replace(plan, outcome=self._held.compared(compressed)[0])


def plan(
    original: Artifact,
    measured: Statistics,
    settings: CompressSettings,
    held: HeldOut | None = None,
    watch: Watch = quiet,
) -> Plan:
    """One plan; the arguments are those of Planning."""
    return Planning(original, measured, held, watch).plan(settings)


def timing(
    original: Artifact, model: nn.Module, found: Found, budget: LatencyBudget, cost_model: str
) -> Timing:
    """What says how long choices for the model's layers take.

    Args:
        cost_model: file of `embedcomp calibrate`; empty: this machine's.

    Raises:
        BadModel: the engine does not run the model.
        BadSettings: the cost model cannot be read.
        NotBuilt: there is no engine.
    """
    alone, features = original.standalone, original.features
    if alone is None or alone.graph is None:
        reason = f" ({alone.reason})" if alone is not None else ""
        raise BadModel(
            f"{original.folder} is not scored by the compiled engine{reason}, whose work is what a "
            "latency is predicted from; give a budget instead"
        )
    costs = CostModel.load(Path(cost_model)) if cost_model else calibrate.of_this_machine()
    lowered = _lowered(original, alone.graph, alone, model, found)
    ids = {feature.name: IDS_IN_A_BAG for feature in features.multi}
    return Timing(lowered, costs, budget, ids=ids)


def _lowered(
    original: Artifact, graph: Graph, alone: Standalone, model: nn.Module, found: Found
) -> Lowered:
    held = {name: as_array(tensor) for name, tensor in original.tensors().items()}
    return Lowered(
        graph,
        lower(graph, alone.tensors(held), alone.user, alone.user_columns),
        layers=found.layers,
        readers=readers(model),
        single_valued={feature.name for feature in original.features.single},
    )
