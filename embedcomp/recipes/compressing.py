"""Carry out a plan, on the weights that it was made for or on others; train the control."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from embedcomp import methods
from embedcomp.artifact.artifact import Artifact
from embedcomp.artifact.proof import (
    Proof,
)
from embedcomp.errors import BadArtifact, BadSettings
from embedcomp.kernels.threads import one_thread
from embedcomp.log.click_log import ClickLog
from embedcomp.planning import planner
from embedcomp.planning.goal import LatencyBudget
from embedcomp.planning.latency import Timing
from embedcomp.planning.plan import Plan
from embedcomp.recipes import trying
from embedcomp.recipes.forming import Forming
from embedcomp.recipes.measuring import held_out, layers_of, measure
from embedcomp.recipes.planned import timing
from embedcomp.recipes.save import figures, on_validation, saved, scratch, seeds_of
from embedcomp.recipes.settings import CompressSettings
from embedcomp.recipes.training import train
from embedcomp.sensitivity.layers import Found
from embedcomp.sensitivity.statistics import Statistics
from embedcomp.support.progress import Doing, Watch, quiet
from embedcomp.swapping import tune
from embedcomp.swapping.cutting import cuts
from embedcomp.swapping.heldout import HeldOut
from embedcomp.swapping.repriced import repriced
from embedcomp.train.fit import Data, fit
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import fast_tables

WORTH_PLANNING = 0.2  # a plan's predicted loss may be worse by so much before it is made anew


def compress(
    original: Artifact,
    log: ClickLog,
    measured: Statistics,
    plan: Plan,
    settings: CompressSettings,
    out: Path,
    *,
    held: HeldOut | None = None,
    control: Artifact | None = None,
    against: Artifact | None = None,
    watch: Watch = quiet,
) -> Artifact:
    """Carry out a plan, train and tune the result if asked, and write it to `out` with its proof.

    Where the plan has others beside it, short runs choose among them first (trying.py).
    The mean score on the held-out rows is brought back to the original's, if it learnt from that,
    and what the model loses there is written into its plan.

    Args:
        held: what `held_out` gives, where it is known already.
        control: the original trained on, whose quality the proof is to record.
        against: that the proof names as the original; None: the original.
    """
    _refuse_untrained(plan, settings)
    model, data = original.model(), Data(log, original.features)
    held = held_out(original, log, settings, watch) if held is None else held
    forming = Forming(original, model, measured, settings, data, held)
    formed = forming.form(trying.best(forming, plan, scratch(out), watch), scratch(out), watch)
    compressed, plan, history = formed.model, formed.plan, formed.history
    if settings.tune.epochs:
        history += tune.tune(compressed, model, data, settings.tune, scratch(out), watch)
    watch(Doing("evaluating"))
    with one_thread(), fast_tables(compressed):
        kept = held.compared if settings.from_log else held.keep_mean_  # labels gave it its mean
        outcome, _ = kept(compressed)
    plan = replace(plan, outcome=outcome)
    told = {"settings": asdict(settings), "history": history}
    proof = Proof.of(
        log,
        on_validation(compressed, log, original.features),
        original.features,
        original=figures(against or original, log),
        control=None if control is None else figures(control, log),
        seeds=seeds_of(
            original,
            ({"form": settings.train.seed} if settings.train.epochs else {})
            | ({"tune": settings.tune.seed} if settings.tune.epochs else {}),
        ),
    )
    layers = measured.measured(layers_of(original, model)).layers
    steps = cuts(model, compressed, plan, layers)
    return saved(out, compressed, original.features, original.source, told, plan, proof, steps)


def _refuse_untrained(plan: Plan, settings: CompressSettings) -> None:
    """Raise BadSettings where a form that is good only once it is trained would not be."""
    names = sorted({p.method for p in plan.layers}.intersection(methods.that_train()))
    if names and not settings.train.epochs:
        raise BadSettings(
            f"the plan uses {', '.join(names)}, whose form is good only once it is trained; give "
            "train.epochs as well"
        )


@dataclass(frozen=True)
class Drift:
    """How an old plan fares with new weights and today's log, in predicted increase of log loss.

    planned: when the plan was made; now: the same choices today; best: a new plan of the same bytes
    today, or None where the old one has not become worse.
    """

    planned: float
    now: float
    best: float | None

    @property
    def new_plan_pays(self) -> bool:
        return self.best is not None and self.best < (1 - WORTH_PLANNING) * self.now

    def __str__(self) -> str:
        losses = f"predicted log loss +{self.now:.2e}, +{self.planned:.2e} when it was planned"
        if self.best is None:
            return f"the plan still holds: {losses}"
        if self.new_plan_pays:
            return (
                f"the log has drifted: {losses}; a new plan would give +{self.best:.2e}, so "
                "compress again"
            )
        return f"the log has drifted, but a new plan would hardly help (+{self.best:.2e}): {losses}"


def recompress(
    planned: Artifact,
    checkpoint: Path,
    log: ClickLog,
    settings: CompressSettings,
    out: Path,
    *,
    watch: Watch = quiet,
) -> tuple[Artifact, Drift]:
    """Carry out an artifact's plan on other weights of the same model, and write the result.

    Args:
        planned: made by `compress`; its vocabularies stay.
        settings: the budget is the plan's.

    Raises:
        BadArtifact: the artifact has no plan, or no source.
        BadModel: the checkpoint does not fit the model.
    """
    if planned.plan is None:
        raise BadArtifact(f"{planned.folder} is a trained model without a plan; use compress")
    _refuse_untrained(planned.plan, settings)
    with TemporaryDirectory() as scratch:
        loading = TrainSettings(epochs=0)
        original = train(
            log, planned.features, planned.source, loading, Path(scratch) / "m", start=checkpoint
        )
        model, measured = original.model(), measure(original, log, settings, watch)
        found = layers_of(original, model)
        today = repriced(model, planned.plan, found, measured)
        best = None
        if today.loss > (1 + WORTH_PLANNING) * planned.plan.loss:
            names = settings.goal.methods
            best = planner.plan(
                model,
                found,
                measured,
                today.budget_bytes,
                names,
                set(today.single_valued),
                solver=today.solver,
                rest=settings.rest,
                timing=_timing_of(today, original, model, found, settings),
                watch=watch,
            ).loss
        artifact = compress(original, log, measured, today, settings, out, watch=watch)
    return artifact, Drift(planned.plan.loss, today.loss, best)


def _timing_of(
    plan: Plan, original: Artifact, model: nn.Module, found: Found, settings: CompressSettings
) -> Timing | None:
    """What says how long choices take, where a plan keeps to a latency."""
    if not plan.latency_budget:
        return None
    budget = LatencyBudget.parse(plan.latency_budget)
    return timing(original, model, found, budget, settings.cost_model)


def control(
    original: Artifact,
    log: ClickLog,
    settings: CompressSettings,
    out: Path,
    *,
    watch: Watch = quiet,
) -> Artifact:
    """Train the original on for the epochs of the compressed model, and write it to `out`.

    It learns from labels alone.
    """
    model, data = original.model(), Data(log, original.features)
    history: list[dict[str, Any]] = []
    if settings.train.epochs:
        step = "training the control"
        history += fit(model, data, settings.train, scratch(out), watch=watch, step=step)
    if settings.tune.epochs:
        history += tune.control(model, data, settings.tune, scratch(out), watch)
    training = {"settings": asdict(settings), "history": history}
    watch(Doing("evaluating"))
    proof = Proof.of(
        log,
        on_validation(model, log, original.features),
        original.features,
        original=figures(original, log),
        seeds=seeds_of(original, {"control": settings.tune.seed}),
    )
    return saved(out, model, original.features, original.source, training, None, proof)
