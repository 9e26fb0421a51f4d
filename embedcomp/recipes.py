"""What the commands and the Ray steps do: the library's functions in the order of the data path.

count -> train -> measure -> plan -> compress (and control) -> evaluate. Counting, measuring and
evaluating go a piece at a time and their results are sums, so shards of them can run anywhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from embedcomp import artifact, in_time, methods
from embedcomp.artifact import Artifact
from embedcomp.compress import checked, planner, statistics, swap, tune
from embedcomp.compress.auc import Noisy
from embedcomp.compress.bound import smallest_within
from embedcomp.compress.checked import Checked, CheckSettings, Counted
from embedcomp.compress.choices import choices
from embedcomp.compress.heldout import HeldOut
from embedcomp.compress.latency import LatencyBudget, Timing
from embedcomp.compress.layers import Found, find
from embedcomp.compress.plan import Plan
from embedcomp.compress.search import Known
from embedcomp.compress.sizes import model_bytes, parse_budget
from embedcomp.compress.spread import Option, spread
from embedcomp.compress.statistics import Statistics, score_batch
from embedcomp.errors import BadArtifact, BadModel
from embedcomp.evaluate import quality
from embedcomp.files import remove
from embedcomp.in_time import Measured
from embedcomp.log.batches import Batch, in_order
from embedcomp.log.click_log import ClickLog, Piece
from embedcomp.log.features import Features
from embedcomp.metrics import Quality
from embedcomp.proof import MOST_ROWS, SPLIT, Figures, Proof, chosen
from embedcomp.scoring import calibrate
from embedcomp.scoring.alone import StandsAlone, as_array, stand_alone_from_log
from embedcomp.scoring.apart import CannotExport
from embedcomp.scoring.cost import CostModel
from embedcomp.scoring.lower import lower
from embedcomp.scoring.prepare import IDS_IN_A_BAG
from embedcomp.served.embedded import readers
from embedcomp.served.rows import keeping_unrounded
from embedcomp.settings import CompressSettings
from embedcomp.source import ModelSource, load_weights
from embedcomp.threads import one_thread
from embedcomp.train import workers
from embedcomp.train.fit import Data, Watch, fit
from embedcomp.train.settings import TrainSettings
from embedcomp.train.tables import fast_tables

TRAIN = "train"
MEASURE_BATCH_ROWS = 2048
CHECK_BATCH_ROWS = 8192
ONLY_BY_CODE = "only the model's own code can score it"
WORTH_PLANNING = 0.2  # a plan's predicted loss may be worse by so much before it is made anew


def quiet(report: object) -> None:
    """A watch that shows nothing."""


def train(
    log: ClickLog,
    features: Features,
    source: ModelSource,
    settings: TrainSettings,
    out: Path,
    *,
    start: Path | None = None,
    watch: Watch = quiet,
) -> Artifact:
    """Train (or with no epochs only load) a model and write it to `out`.

    Args:
        start: checkpoint with the weights to start from.
    """
    model = source.build(features, settings.seed)
    if start is not None:
        load_weights(model, start)
    history = fit(model, Data(log, features), settings, _scratch(out), watch=watch)
    training = {"settings": asdict(settings), "history": history}
    drawn = settings.epochs > 0 or start is None
    seeds = {"train": settings.seed} if drawn else {}
    proof = Proof.of(log, on_validation(model, log, features), seeds=seeds)
    return _saved(out, model, features, source, training, None, proof)


def layers_of(original: Artifact, model: nn.Module) -> Found:
    """The model's layers that can be compressed, with the log's id counts."""
    counts = {f.name: f.vocabulary.counts for f in original.features.ids}
    return find(model, counts)


def measure_pieces(log: ClickLog) -> list[Piece]:
    """The pieces that statistics are gathered on."""
    return log.pieces("train")


def measure_piece(
    original: Artifact, model: nn.Module, log: ClickLog, piece: Piece, share: float
) -> Statistics:
    """Statistics of every layer over the first `share` of one piece's rows.

    On one thread, since products summed by several differ in the last bit.
    """
    rows = max(1, round(piece.rows * share))
    batches = in_order(log, original.features, [piece], MEASURE_BATCH_ROWS, rows_per_piece=rows)
    with one_thread():
        return statistics.measure(model, batches, layers_of(original, model))


def measure(original: Artifact, log: ClickLog, settings: CompressSettings) -> Statistics:
    """Statistics of every layer over about `measure_rows` rows spread over the whole log."""
    model, pieces = original.model(), measure_pieces(log)
    share = measure_share(pieces, settings)
    return total(measure_piece(original, model, log, piece, share) for piece in pieces)


def measure_share(pieces: Sequence[Piece], settings: CompressSettings) -> float:
    """The share of each piece that is read, so that about `measure_rows` rows are."""
    return min(1.0, settings.measure_rows / sum(piece.rows for piece in pieces))


def total(parts: Iterable[Statistics]) -> Statistics:
    """The sum of the pieces' statistics; in the order of the pieces it is the same bit for bit."""
    first, *others = parts
    for part in others:
        first += part
    return first


def held_out(original: Artifact, log: ClickLog, settings: CompressSettings) -> HeldOut:
    """About `measure_rows` rows that compressed models are held against the original on.

    They are of the validation split, which the model was not fitted to, and where there is none of
    the training split. On one thread, so that scores are the same to the last bit wherever this
    runs.

    Raises:
        BadLog: there is a bound on the AUC, but no validation split.
    """
    bounded = settings.max_auc_loss is not None
    split = SPLIT if bounded or SPLIT in log.schema.splits else TRAIN
    batches = rows_of(original, log, split, settings.measure_rows)
    with one_thread(), fast_tables(original.model()) as model:
        pairs = ((batch, batch.labels) for batch in batches)
        return HeldOut.of(model, pairs, score_batch, split)


def on_validation(model: nn.Module, log: ClickLog, features: Features) -> Quality | None:
    """A model's quality on the rows of a proof, of which workers share the pieces.

    Returns:
        None: there is no validation split.
    """
    if SPLIT not in log.schema.splits:
        return None
    found, pieces = Quality(), chosen(log, SPLIT, MOST_ROWS)
    with fast_tables(model):
        for piece, rows in pieces[workers.rank() :: workers.count()]:
            found += quality(model, log, features, [piece], rows)
    return workers.total(found)


class Planning:
    """Plans of one model, for any budget and methods: what one finds out serves the next.

    Args:
        held: rows that a bound on the AUC has to hold on; under a budget they add the predicted
            loss of AUC to the plan.
    """

    def __init__(self, original: Artifact, measured: Statistics, held: HeldOut | None = None):
        self._original, self.model = original, original.model()
        self.found = measured.measured(layers_of(original, self.model))
        self._single = {f.name for f in original.features.single}
        self._held = held
        self._known: dict[bool, Known] = {}  # without tuning, and with

    def plan(self, settings: CompressSettings) -> Plan:
        """The best choices within the budgets or the loss of AUC.

        For a bound on the AUC plans are carried out and measured until one holds, and so they are
        for a latency of this machine (in_time.py). Otherwise nothing is compressed yet.

        Raises:
            BadLog: the held-out rows have no AUC that could be lost.
            BadModel: there is a latency budget, but the engine does not run the model.
            BadSettings: max_auc_loss is none that noise on the scores can bring about, or the cost
                model cannot be read.
            LimitsTooSmall: no choices keep to them.
        """
        bound, names = settings.max_auc_loss, methods.named(settings.methods)
        if bound is None:
            return in_time.best(self.tried(settings))
        assert self._held is not None, "a bound on the AUC is held against held-out rows"
        first = Noisy.of(self._held.quality).log_loss(bound)
        self._held.refuse_one_kind()
        found = smallest_within(
            bound,
            first,
            partial(self._within, settings, names, None),
            self._carried_out,
            partial(self._within, settings, ("keep",), None, first),
        )
        return replace(found, max_auc_loss=bound)

    def tried(self, settings: CompressSettings) -> list[Plan]:
        """The plans without a bound on the AUC that are made on the way to the best one."""
        names, whole = methods.named(settings.methods), model_bytes(self.model)["total"]
        budget = parse_budget(settings.budget, whole) if settings.budget else None
        if not settings.latency_budget:
            return [self._within(settings, names, budget, None)]
        times = timing(self._original, self.model, self.found, settings)
        make = partial(self._within, settings, names, budget, None, times)
        if times.model.machine != calibrate.cpu():  # it will be served where it cannot be timed
            return [make()]
        return in_time.tried(make, partial(self._time, times.rows), times)

    def _time(self, rows: int, plan: Plan) -> Measured:
        """Carry a plan out and time it against the original."""
        original = self._original
        assert original.standalone is not None, "its time was predicted"
        made = swap.apply(self.model, plan, self.found, Statistics())
        before = in_time.calls(original.standalone, original.tensors(), original.features, rows)
        return in_time.measure(before, made, original.features, rows)

    def _within(
        self,
        settings: CompressSettings,
        names: Sequence[str],
        budget: int | None,
        most_loss: float | None,
        timing: Timing | None = None,
    ) -> Plan:
        tuned = settings.tune.epochs > 0
        made = planner.plan(
            self.model,
            self.found,
            Statistics(),  # the layers have theirs
            budget,
            names,
            self._single,
            most_loss=most_loss,
            solver=settings.solver,
            rest=settings.rest,
            known=self._known.setdefault(tuned, {}),
            timing=timing,
            tuned=tuned,
        )
        noisy = self._noisy
        return made if noisy is None else replace(made, auc_loss=noisy.auc_loss(made.loss))

    @cached_property
    def _noisy(self) -> Noisy | None:
        """None: there are no held-out rows, or only clicked ones, or none of them."""
        held = self._held
        return None if held is None or math.isnan(held.quality.auc) else Noisy.of(held.quality)

    def _carried_out(self, plan: Plan) -> Plan:
        """The plan with what it does to the held-out rows."""
        assert self._held is not None
        made = swap.apply(self.model, plan, self.found, Statistics())
        with one_thread(), fast_tables(made):
            return replace(plan, outcome=self._held.compared(made)[0])


def plan(
    original: Artifact,
    measured: Statistics,
    settings: CompressSettings,
    held: HeldOut | None = None,
) -> Plan:
    """One plan; the arguments are those of Planning."""
    return Planning(original, measured, held).plan(settings)


def timing(
    original: Artifact, model: nn.Module, found: Found, settings: CompressSettings
) -> Timing:
    """What says how long choices for the model's layers take.

    Raises:
        BadModel: the engine does not run the model.
        BadSettings: the cost model cannot be read.
        NotBuilt: there is no engine.
    """
    alone = original.standalone
    if alone is None or alone.graph is None:
        reason = f" ({alone.reason})" if alone is not None else ""
        raise BadModel(
            f"{original.folder} is not scored by the compiled engine{reason}, whose work is what a "
            "latency is predicted from; give a budget instead"
        )
    costs = (
        CostModel.load(Path(settings.cost_model))
        if settings.cost_model
        else calibrate.of_this_machine()
    )
    held = {name: as_array(tensor) for name, tensor in original.tensors().items()}
    program = lower(alone.graph, alone.tensors(held), alone.user, alone.user_columns)
    features = original.features
    return Timing(
        alone.graph,
        program,
        costs,
        LatencyBudget.parse(settings.latency_budget),
        layers=found.layers,
        ids={feature.name: IDS_IN_A_BAG for feature in features.multi},
        readers=readers(model),
        single_valued={feature.name for feature in features.single},
    )


def options(
    original: Artifact,
    measured: Statistics,
    settings: CompressSettings,
    checking: CheckSettings,
    rows: int,
    watch: Counted = checked.quiet,
) -> list[Option]:
    """Options of all layers to hold predicted losses against measured ones on.

    Args:
        rows: that they will be measured on.

    Raises:
        BadModel: no method offers anything for any layer.
    """
    found = measured.measured(layers_of(original, original.model()))
    names = [name for name in methods.named(settings.methods) if name != "keep"]
    offered = {}
    for done, (name, layer) in enumerate(found.layers.items()):
        watch(done, len(found.layers))
        offered[name] = choices(layer, names)
    chosen = spread(offered, checking.options, checking.smallest(rows), checking.seed)
    if not chosen:
        reasons = [f"{name} {reason}" for name, reason in found.refused.items()]
        said = f" ({reasons[0]})" if reasons else ""
        raise BadModel(f"{original.folder} has no layer that the methods would change{said}")
    return chosen


def rows_of(original: Artifact, log: ClickLog, split: str, rows: int) -> list[Batch]:
    """About so many rows spread over the pieces of a split, kept in memory."""
    pieces = log.pieces(split)
    share = min(1.0, rows / sum(piece.rows for piece in pieces))
    return [
        batch
        for piece in pieces
        for batch in in_order(
            log,
            original.features,
            [piece],
            CHECK_BATCH_ROWS,
            rows_per_piece=max(1, round(piece.rows * share)),
        )
    ]


def check(
    original: Artifact,
    measured: Statistics,
    chosen: Sequence[Option],
    batches: Sequence[Batch],
    watch: Counted = checked.quiet,
) -> list[Checked]:
    """Measure the increase of the log loss by each option alone."""
    model = original.model()
    layers = measured.measured(layers_of(original, model)).layers
    return checked.check(model, layers, chosen, batches, watch)


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
    watch: Watch = quiet,
) -> Artifact:
    """Carry out a plan, tune the result if asked, and write it to `out` with its proof.

    The mean score on the held-out rows is brought back to the original's, and what the model loses
    there is written into its plan.

    Args:
        held: what `held_out` gives, where it is known already.
        control: the original trained on, whose quality the proof is to record.
    """
    model = original.model()
    tuned = settings.tune.epochs > 0
    with keeping_unrounded() if tuned else nullcontext():  # tuning learns which way to round
        compressed = swap.apply(model, plan, layers_of(original, model), measured)
    history: list[dict[str, Any]] = []
    if tuned:
        data = Data(log, original.features)
        history = tune.tune(compressed, model, data, settings.tune, _scratch(out), watch)
    held = held_out(original, log, settings) if held is None else held
    with one_thread(), fast_tables(compressed):
        outcome, _ = held.keep_mean_(compressed)
    plan = replace(plan, outcome=outcome)
    training = {"settings": asdict(settings), "history": history}
    proof = Proof.of(
        log,
        on_validation(compressed, log, original.features),
        original=figures(original, log),
        control=None if control is None else figures(control, log),
        seeds=_seeds(original, {"tune": settings.tune.seed} if tuned else {}),
    )
    return _saved(out, compressed, original.features, original.source, training, plan, proof)


def figures(made: Artifact, log: ClickLog) -> Figures | None:
    """An artifact's quality on a proof's rows: as it recorded it of this log, or measured now."""
    known = made.proof
    if known is not None and known.most_rows == MOST_ROWS and known.is_of(log):
        return known.model
    found = on_validation(made.model(), log, made.features)
    return None if found is None else Figures.of(found)


def _seeds(original: Artifact, more: dict[str, int]) -> dict[str, int]:
    known = original.proof
    return {**(known.seeds if known is not None else {}), **more}


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
        told = f"predicted log loss +{self.now:.2e}, +{self.planned:.2e} when it was planned"
        if self.best is None:
            return f"the plan still holds: {told}"
        if self.new_plan_pays:
            return (
                f"the log has drifted: {told}; a new plan would give +{self.best:.2e}, so "
                "compress again"
            )
        return f"the log has drifted, but a new plan would hardly help (+{self.best:.2e}): {told}"


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
    with TemporaryDirectory() as scratch:
        loading = TrainSettings(epochs=0)
        original = train(
            log, planned.features, planned.source, loading, Path(scratch) / "m", start=checkpoint
        )
        model, measured = original.model(), measure(original, log, settings)
        found = layers_of(original, model)
        today = planner.repriced(model, planned.plan, found, measured)
        best = None
        if today.loss > (1 + WORTH_PLANNING) * planned.plan.loss:
            names = methods.named(settings.methods)
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
            ).loss
        made = compress(original, log, measured, today, settings, out, watch=watch)
    return made, Drift(planned.plan.loss, today.loss, best)


def _timing_of(
    plan: Plan, original: Artifact, model: nn.Module, found: Found, settings: CompressSettings
) -> Timing | None:
    """What says how long choices take, where a plan keeps to a latency."""
    if not plan.latency_budget:
        return None
    return timing(original, model, found, replace(settings, latency_budget=plan.latency_budget))


def control(
    original: Artifact,
    log: ClickLog,
    settings: CompressSettings,
    out: Path,
    *,
    watch: Watch = quiet,
) -> Artifact:
    """Train the original on as a compressed model is tuned, and write it to `out`."""
    model = original.model()
    history = tune.control(model, Data(log, original.features), settings.tune, _scratch(out), watch)
    training = {"settings": asdict(settings.tune), "history": history}
    proof = Proof.of(
        log,
        on_validation(model, log, original.features),
        original=figures(original, log),
        seeds=_seeds(original, {"control": settings.tune.seed}),
    )
    return _saved(out, model, original.features, original.source, training, None, proof)


def summary(made: Artifact) -> dict[str, Any]:
    """What a command prints of an artifact that it made."""
    manifest = made.manifest
    return {
        "path": str(made.folder),
        "bytes": manifest.bytes,
        "metrics": manifest.metrics,
        "needs_code": manifest.needs_code,
        "history": manifest.training.get("history", []),
        "plan": manifest.plan,
    }


def summary_line(made: Artifact) -> str:
    manifest, proof = made.manifest, made.proof
    needs = f"; {ONLY_BY_CODE}: {manifest.needs_code}" if manifest.needs_code else ""
    proved = f", {proof}" if proof is not None else ""
    return f"{made.folder}: {manifest.bytes['total']:,} bytes{proved}{needs}"


def _saved(
    out: Path,
    model: nn.Module,
    features: Features,
    source: ModelSource,
    training: dict[str, Any],
    plan: Plan | None,
    proof: Proof,
) -> Artifact:
    """Write the model once, whatever the number of workers that trained it."""
    if workers.rank() == 0:
        alone, needs_code = _alone(model, features)
        artifact.save(
            out,
            model,
            features=features,
            source=source,
            alone=alone,
            needs_code=needs_code,
            bytes=model_bytes(model),
            plan=plan,
            training=training,
            proof=proof,
        )
        remove(_scratch(out))
    workers.wait()
    return Artifact.open(out)


def _alone(model: nn.Module, features: Features) -> tuple[StandsAlone | None, str]:
    """What it takes to score without the model's code, or why there is no such thing."""
    try:
        return stand_alone_from_log(model, features), ""
    except CannotExport as error:
        logging.getLogger(__name__).warning("%s: %s", ONLY_BY_CODE, error)
        return None, str(error)


def _scratch(out: Path) -> Path:
    """Where a run that makes `out` keeps its checkpoints until it is done."""
    return out / ".checkpoints"
